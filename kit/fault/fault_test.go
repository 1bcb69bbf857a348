package fault_test

import (
	"context"
	"math"
	"net/http"
	"net/http/httptest"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"example.com/tandem/kit/fault"
	"example.com/tandem/kit/instance"
)

func TestParse_ReadsFault(t *testing.T) {
	for _, c := range []struct {
		in   string
		want fault.Fault
	}{
		{in: `{}`, want: fault.Fault{}},
		{
			in:   ` {"latency":"250ms","cpu":"5ms","errorRate":0.3,"notReady":true} ` + "\n",
			want: fault.Fault{Latency: 250 * time.Millisecond, CPU: 5 * time.Millisecond, ErrorRate: 0.3, NotReady: true},
		},
		{in: `{"latency":"1m"}`, want: fault.Fault{Latency: fault.MaxLatency}},
		{in: `{"latency":"0s","cpu":"0s","errorRate":1}`, want: fault.Fault{ErrorRate: 1}},
	} {
		t.Run(c.in, func(t *testing.T) {
			f, err := fault.Parse(strings.NewReader(c.in))
			require.NoError(t, err)
			assert.Equal(t, c.want, f)
		})
	}
}

// The error says what would be valid.
func TestParse_RejectsInvalid(t *testing.T) {
	const example = `want JSON such as {"latency":"250ms","cpu":"5ms","errorRate":0.3,"notReady":true}: `
	for _, c := range []struct{ name, in, want string }{
		{name: "empty", in: ``, want: example + "EOF"},
		{name: "no JSON", in: `latency=1s`, want: example},
		{name: "unknown field", in: `{"latancy":"1s"}`, want: example + `json: unknown field "latancy"`},
		{name: "second value", in: `{"latency":"1s"}{"latency":"2s"}`, want: example + "unexpected text after the JSON value"},
		{name: "text after the value", in: `{"latency":"1s"}}`, want: example + "unexpected text after the JSON value"},
		{name: "number without a unit", in: `{"latency":250}`, want: example},
		{name: "invalid latency", in: `{"latency":"soon"}`, want: `latency "soon": want 0s to 1m0s`},
		{name: "negative latency", in: `{"latency":"-1s"}`, want: `latency "-1s": want 0s to 1m0s`},
		{name: "latency too long", in: `{"latency":"61s"}`, want: `latency "61s": want 0s to 1m0s`},
		{name: "CPU time too long", in: `{"cpu":"61s"}`, want: `cpu "61s": want 0s to 1m0s`},
		{name: "rate below 0", in: `{"errorRate":-0.1}`, want: "errorRate -0.1: want 0 to 1"},
		{name: "rate in percent", in: `{"errorRate":30}`, want: "errorRate 30: want 0 to 1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f, err := fault.Parse(strings.NewReader(c.in))
			require.ErrorContains(t, err, c.want)
			assert.Zero(t, f)
		})
	}
}

// Parse either returns an error or a fault within the limits, which a GET of the
// switch shows unchanged.
func FuzzParse_RoundTrips(f *testing.F) {
	for _, seed := range []string{
		`{}`, `null`, fault.Example, `{"latency":"1h"}`, `{"errorRate":1e-320}`, `{"errorRate":-0}`, `{}{}`,
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, in string) {
		got, err := fault.Parse(strings.NewReader(in))
		if err != nil {
			assert.Zero(t, got)
			return
		}
		assert.True(t, got.Latency >= 0 && got.Latency <= fault.MaxLatency, "latency %s", got.Latency)
		assert.True(t, got.CPU >= 0 && got.CPU <= fault.MaxLatency, "cpu %s", got.CPU)
		assert.True(t, got.ErrorRate >= 0 && got.ErrorRate <= 1 && !math.IsNaN(got.ErrorRate), "rate %v", got.ErrorRate)

		s := fault.NewSwitch(true, func(bool) {})
		s.Set(got)
		shown, err := fault.Parse(send(s, http.MethodGet, "").Body)
		require.NoError(t, err)
		assert.Equal(t, got, shown)
	})
}

// send sends a request to a switch.
func send(s *fault.Switch, method, body string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	s.ServeHTTP(w, httptest.NewRequest(method, "/faults", strings.NewReader(body)))
	return w
}

func TestInject_WaitsForLatency(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := fault.NewSwitch(true, func(bool) {})
		s.Set(fault.Fault{Latency: 7 * time.Second})
		start := time.Now()
		require.NoError(t, s.Inject(t.Context()))
		assert.Equal(t, 7*time.Second, time.Since(start))
	})
}

func TestInject_LatencyEndsWithContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := fault.NewSwitch(true, func(bool) {})
		s.Set(fault.Fault{Latency: fault.MaxLatency, ErrorRate: 1})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start := time.Now()
		require.ErrorIs(t, s.Inject(ctx), context.DeadlineExceeded)
		assert.Equal(t, time.Second, time.Since(start))
	})
}

func TestInject_UsesCPUTime(t *testing.T) {
	s := fault.NewSwitch(true, func(bool) {})
	s.Set(fault.Fault{CPU: time.Millisecond})
	require.NoError(t, s.Inject(t.Context())) // measures how fast the CPU is
	const n, each = 20, 10 * time.Millisecond
	s.Set(fault.Fault{CPU: each})
	before := cpuTime(t)
	for range n {
		require.NoError(t, s.Inject(t.Context()))
	}
	used := cpuTime(t) - before
	t.Logf("%d times %s used %s", n, each, used)
	// Other load makes the same work take longer. Half is enough to pass, because the
	// CPU may be faster now than when it was measured.
	assert.Greater(t, used, n*each/2)
}

// cpuTime returns the CPU time that this process has used.
func cpuTime(t *testing.T) time.Duration {
	t.Helper()
	var used syscall.Rusage
	require.NoError(t, syscall.Getrusage(syscall.RUSAGE_SELF, &used))
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}

func TestInject_CPUTimeEndsWithContext(t *testing.T) {
	s := fault.NewSwitch(true, func(bool) {})
	s.Set(fault.Fault{CPU: fault.MaxLatency})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	start := time.Now()
	require.ErrorIs(t, s.Inject(ctx), context.DeadlineExceeded)
	assert.Less(t, time.Since(start), fault.MaxLatency/4)
}

func TestInject_FailsAtErrorRate(t *testing.T) {
	for _, rate := range []float64{0, 0.3, 1} {
		s := fault.NewSwitch(true, func(bool) {})
		s.Set(fault.Fault{ErrorRate: rate})
		const n = 20_000
		failed := 0
		for range n {
			if err := s.Inject(t.Context()); err != nil {
				require.ErrorIs(t, err, fault.ErrInjected)
				failed++
			}
		}
		if rate == 0 || rate == 1 {
			assert.Equal(t, int(rate*n), failed)
			continue
		}
		assert.InDelta(t, rate*n, failed, 0.03*n, "nine standard deviations")
	}
}

func TestSwitch_NilInjectsNothing(t *testing.T) {
	s := fault.NewSwitch(false, func(bool) {})
	require.Nil(t, s)
	s.Set(fault.Fault{ErrorRate: 1})
	require.NoError(t, s.Inject(t.Context()))
}

// The cases run in order on one switch.
func TestSwitch_ServesHTTP(t *testing.T) {
	var notReady []bool
	s := fault.NewSwitch(true, func(b bool) { notReady = append(notReady, b) })
	const none = `{"latency":"0s","cpu":"0s","errorRate":0,"notReady":false}`
	for _, c := range []struct {
		name, method, body string
		status             int
		response           string // not compared if empty
	}{
		{name: "no fault at first", method: http.MethodGet, status: 200, response: none},
		{
			name:     "set a fault",
			method:   http.MethodPut,
			body:     `{"latency":"1ms","notReady":true}`,
			status:   200,
			response: `{"latency":"1ms","cpu":"0s","errorRate":0,"notReady":true}`,
		},
		{
			name:     "reject an invalid fault",
			method:   http.MethodPut,
			body:     `{"errorRate":2}`,
			status:   400,
			response: `{"title":"Bad Request","status":400,"detail":"errorRate 2: want 0 to 1"}`,
		},
		{name: "reject a body that is too long", method: http.MethodPut, body: strings.Repeat(" ", 5000) + "{}", status: 400},
		{
			name:     "a rejected fault changes nothing",
			method:   http.MethodGet,
			status:   200,
			response: `{"latency":"1ms","cpu":"0s","errorRate":0,"notReady":true}`,
		},
		{
			name:     "replace the fault",
			method:   http.MethodPut,
			body:     `{"errorRate":1}`,
			status:   200,
			response: `{"latency":"0s","cpu":"0s","errorRate":1,"notReady":false}`,
		},
		{name: "remove the fault", method: http.MethodDelete, status: 200, response: none},
		{name: "no fault at the end", method: http.MethodGet, status: 200, response: none},
		{
			name:     "reject other methods",
			method:   http.MethodPost,
			body:     `{"errorRate":1}`,
			status:   405,
			response: `{"title":"Method Not Allowed","status":405,"detail":"use GET, PUT or DELETE"}`,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := send(s, c.method, c.body)
			require.Equal(t, c.status, w.Code)
			if c.response != "" {
				assert.JSONEq(t, c.response, w.Body.String())
			}
			if c.status == 200 {
				assert.Equal(t, "application/json", w.Header().Get("Content-Type"))
			} else {
				assert.Equal(t, "application/problem+json", w.Header().Get("Content-Type"))
			}
			if c.status == 405 {
				assert.Equal(t, "GET, PUT, DELETE", w.Header().Get("Allow"))
			}
		})
	}
	assert.Equal(t, []bool{true, false, false}, notReady, "setNotReady must be called for each accepted change only")
	require.NoError(t, s.Inject(t.Context()))
}

// Only a request that names this pod changes the fault; everybody may read it. The response
// says which instance it is.
func TestRemote_ObeysForThisPodOnly(t *testing.T) {
	s := fault.NewSwitch(true, func(bool) {})
	remote := s.Remote(instance.Instance{Service: "b", Version: "v1", Pod: "b-1"})
	const me = `"instance":{"service":"b","version":"v1","pod":"b-1"}`
	const slow, none = `"fault":{"latency":"1s","cpu":"0s","errorRate":0,"notReady":false}`, `"fault":{"latency":"0s","cpu":"0s","errorRate":0,"notReady":false}`
	for _, c := range []struct {
		method, query, body string
		status              int
		response            string
	}{
		{method: http.MethodGet, status: 200, response: "{" + me + "," + none + "}"},
		{method: http.MethodPut, query: "?pod=b-2", body: `{"latency":"1s"}`, status: 421},
		{method: http.MethodPut, body: `{"latency":"1s"}`, status: 421},
		{method: http.MethodDelete, query: "?pod=", status: 421},
		{method: http.MethodGet, query: "?pod=b-2", status: 421},
		{method: http.MethodGet, query: "?pod=b-1", status: 200, response: "{" + me + "," + none + "}"},
		{method: http.MethodPut, query: "?pod=b-1", body: `{"latency":"1s"}`, status: 200, response: "{" + me + "," + slow + "}"},
		{method: http.MethodPut, query: "?pod=b-1", body: `{"latency":1}`, status: 400},
		{method: http.MethodPost, query: "?pod=b-1", status: 405},
		{method: http.MethodDelete, query: "?pod=b-1", status: 200, response: "{" + me + "," + none + "}"},
	} {
		w := httptest.NewRecorder()
		remote.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), c.method, fault.Path+c.query, strings.NewReader(c.body)))
		assert.Equal(t, c.status, w.Code, "%s %s", c.method, c.query)
		if c.response != "" {
			assert.JSONEq(t, c.response, w.Body.String())
		}
	}
}
