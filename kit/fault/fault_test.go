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
)

func TestParse(t *testing.T) {
	for _, c := range []struct {
		in   string
		want fault.Fault
	}{
		{`{}`, fault.Fault{}},
		{` {"latency":"250ms","cpu":"5ms","errorRate":0.3,"notReady":true} ` + "\n", fault.Fault{Latency: 250 * time.Millisecond, CPU: 5 * time.Millisecond, ErrorRate: 0.3, NotReady: true}},
		{`{"latency":"1m"}`, fault.Fault{Latency: fault.MaxLatency}},
		{`{"latency":"0s","cpu":"0s","errorRate":1}`, fault.Fault{ErrorRate: 1}},
	} {
		t.Run(c.in, func(t *testing.T) {
			f, err := fault.Parse(strings.NewReader(c.in))
			require.NoError(t, err)
			assert.Equal(t, c.want, f)
		})
	}
}

func TestParseSaysWhatIsWanted(t *testing.T) {
	const example = `want JSON such as {"latency":"250ms","cpu":"5ms","errorRate":0.3,"notReady":true}: `
	for _, c := range []struct{ name, in, want string }{
		{"nothing", ``, example + "EOF"},
		{"no JSON", `latency=1s`, example},
		{"an unknown field", `{"latancy":"1s"}`, example + `json: unknown field "latancy"`},
		{"a second value", `{"latency":"1s"}{"latency":"2s"}`, example + "there is more after it"},
		{"rubbish after it", `{"latency":"1s"}}`, example + "there is more after it"},
		{"a number without a unit", `{"latency":250}`, example},
		{"a latency that is none", `{"latency":"soon"}`, `latency "soon": want 0s to 1m0s`},
		{"a negative latency", `{"latency":"-1s"}`, `latency "-1s": want 0s to 1m0s`},
		{"too long a latency", `{"latency":"61s"}`, `latency "61s": want 0s to 1m0s`},
		{"too much work", `{"cpu":"61s"}`, `cpu "61s": want 0s to 1m0s`},
		{"a rate below 0", `{"errorRate":-0.1}`, "errorRate -0.1: want 0 to 1"},
		{"a rate in percent", `{"errorRate":30}`, "errorRate 30: want 0 to 1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f, err := fault.Parse(strings.NewReader(c.in))
			require.ErrorContains(t, err, c.want)
			assert.Zero(t, f)
		})
	}
}

// FuzzParse: whatever is put is refused, or is within bounds and reads back
// as the same fault.
func FuzzParse(f *testing.F) {
	for _, seed := range []string{`{}`, `null`, `{"latency":"250ms","cpu":"5ms","errorRate":0.3,"notReady":true}`, `{"latency":"1h"}`, `{"errorRate":1e-320}`, `{"errorRate":-0}`, `{}{}`} {
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
		shown, err := fault.Parse(ask(s, http.MethodGet, "").Body)
		require.NoError(t, err)
		assert.Equal(t, got, shown)
	})
}

func ask(s *fault.Switch, method, body string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	s.ServeHTTP(w, httptest.NewRequest(method, "/faults", strings.NewReader(body)))
	return w
}

func TestLatencyIsWaited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := fault.NewSwitch(true, func(bool) {})
		s.Set(fault.Fault{Latency: 7 * time.Second})
		start := time.Now()
		require.NoError(t, s.Inject(t.Context()))
		assert.Equal(t, 7*time.Second, time.Since(start))
	})
}

func TestLatencyEndsWhenTheCallerLeaves(t *testing.T) {
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

func TestCPUTimeIsUsedUp(t *testing.T) {
	s := fault.NewSwitch(true, func(bool) {})
	s.Set(fault.Fault{CPU: time.Millisecond})
	require.NoError(t, s.Inject(t.Context())) // which finds out how fast the CPU is
	const n, each = 20, 10 * time.Millisecond
	s.Set(fault.Fault{CPU: each})
	before := cpuTime(t)
	for range n {
		require.NoError(t, s.Inject(t.Context()))
	}
	used := cpuTime(t) - before
	t.Logf("%d times %s used up %s", n, each, used)
	// A CPU that others slow down needs longer for the same work; none needs less
	// than at its fastest, but for what the fastest of the first moments was not.
	assert.Greater(t, used, n*each/2)
}

// cpuTime is what this process has used, and no other.
func cpuTime(t *testing.T) time.Duration {
	t.Helper()
	var used syscall.Rusage
	require.NoError(t, syscall.Getrusage(syscall.RUSAGE_SELF, &used))
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}

func TestWorkEndsWhenTheCallerLeaves(t *testing.T) {
	s := fault.NewSwitch(true, func(bool) {})
	s.Set(fault.Fault{CPU: fault.MaxLatency})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	start := time.Now()
	require.ErrorIs(t, s.Inject(ctx), context.DeadlineExceeded)
	assert.Less(t, time.Since(start), fault.MaxLatency/4)
}

func TestTheErrorRateIsAShare(t *testing.T) {
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

func TestANilSwitchNeverStrikes(t *testing.T) {
	s := fault.NewSwitch(false, func(bool) {})
	require.Nil(t, s)
	s.Set(fault.Fault{ErrorRate: 1})
	require.NoError(t, s.Inject(t.Context()))
}

func TestTheSwitchOverHTTP(t *testing.T) {
	var sick []bool
	s := fault.NewSwitch(true, func(b bool) { sick = append(sick, b) })
	const healthy = `{"latency":"0s","cpu":"0s","errorRate":0,"notReady":false}`
	for _, c := range []struct {
		name, method, body string
		status             int
		answer             string
	}{
		{"nothing is wrong at first", http.MethodGet, "", 200, healthy},
		{"a fault is set", http.MethodPut, `{"latency":"1ms","notReady":true}`, 200, `{"latency":"1ms","cpu":"0s","errorRate":0,"notReady":true}`},
		{"a bad one is refused", http.MethodPut, `{"errorRate":2}`, 400, `{"title":"Bad Request","status":400,"detail":"errorRate 2: want 0 to 1"}`},
		{"and one of no end", http.MethodPut, strings.Repeat(" ", 5000) + "{}", 400, ""},
		{"so the one before stays", http.MethodGet, "", 200, `{"latency":"1ms","cpu":"0s","errorRate":0,"notReady":true}`},
		{"another takes its place", http.MethodPut, `{"errorRate":1}`, 200, `{"latency":"0s","cpu":"0s","errorRate":1,"notReady":false}`},
		{"it heals", http.MethodDelete, "", 200, healthy},
		{"for good", http.MethodGet, "", 200, healthy},
		{"other methods are not for it", http.MethodPost, `{"errorRate":1}`, 405, `{"title":"Method Not Allowed","status":405,"detail":"use GET, PUT or DELETE"}`},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := ask(s, c.method, c.body)
			require.Equal(t, c.status, w.Code)
			if c.answer != "" {
				assert.JSONEq(t, c.answer, w.Body.String())
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
	assert.Equal(t, []bool{true, false, false}, sick, "readiness heard of each change, and of nothing that was refused")
	require.NoError(t, s.Inject(t.Context()))
}
