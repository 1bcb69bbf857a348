package httpclient_test

import (
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"example.com/tandem/kit/call"
	"example.com/tandem/kit/httpclient"
)

// status returns a handler that sends a status and at most one header.
func status(code int, header ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		if len(header) > 0 {
			w.Header().Set(header[0], header[1])
		}
		w.WriteHeader(code)
	}
}

// breakOff returns a handler that sends part of a response and closes the connection,
// with a FIN or a RST.
func breakOff(part string, reset bool) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		conn, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			panic(err)
		}
		_, _ = io.WriteString(conn, part)
		if reset {
			_ = conn.(*net.TCPConn).SetLinger(0)
		}
		_ = conn.Close()
	}
}

// Whether an attempt is retried depends on its status, its Retry-After header, or where
// its response broke off.
func TestRetry_ByStatusAndError(t *testing.T) {
	retryAfter := func(value string) http.HandlerFunc { return status(503, "Retry-After", value) }
	inAnHour := time.Now().Add(time.Hour).UTC().Format(http.TimeFormat)
	for name, tt := range map[string]struct {
		first    http.HandlerFunc // of the first request; later ones get a 200
		attempts int
		status   int
	}{
		"200": {first: status(200), attempts: 1, status: 200},
		"401": {first: status(401), attempts: 1, status: 401},
		"403": {first: status(403), attempts: 1, status: 403},
		"404": {first: status(404), attempts: 1, status: 404},
		"429": {first: status(429), attempts: 1, status: 429},
		"500": {first: status(500), attempts: 1, status: 500},
		"502": {first: status(502), attempts: 2, status: 200},
		"503": {first: status(503), attempts: 2, status: 200},
		"504": {first: status(504), attempts: 2, status: 200},

		"after 0 s":        {first: retryAfter("0"), attempts: 2, status: 200},
		"after 1 s":        {first: retryAfter("1"), attempts: 2, status: 200},
		"after 300 years":  {first: retryAfter("10000000000"), attempts: 1, status: 503},
		"in an hour":       {first: retryAfter(inAnHour), attempts: 1, status: 503},
		"in the year 9999": {first: retryAfter("Fri, 31 Dec 9999 23:59:59 GMT"), attempts: 1, status: 503},
		"date in the past": {first: retryAfter("Thu, 01 Jan 1970 00:00:00 GMT"), attempts: 2, status: 200},

		"reset":            {first: breakOff("", true), attempts: 2, status: 200},
		"closed":           {first: breakOff("", false), attempts: 2, status: 200},
		"closed in header": {first: breakOff("HTTP/1.1 200 OK\r\nX: y\r\n", false), attempts: 2, status: 200},
		"closed in body": {
			first:    breakOff("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nwho", false),
			attempts: 2, status: 200,
		},
		"closed in chunks": {
			first:    breakOff("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nwho\r\n", false),
			attempts: 2, status: 200,
		},
		"not HTTP": {first: breakOff("220 smtp.test\r\n", false), attempts: 1},
	} {
		t.Run(name, func(t *testing.T) {
			url, requests := serve(t, func(n int, w http.ResponseWriter, r *http.Request) {
				if n == 1 {
					tt.first(w, r)
				} else {
					_, _ = io.WriteString(w, "the whole response")
				}
			})
			r := get(t, newClient(t, httpclient.Options{}), url)
			assert.Equal(t, tt.attempts, r.Attempts)
			assert.EqualValues(t, tt.attempts, requests.Load())
			assert.Equal(t, tt.status, r.status, "%v", r.err)
			if r.Attempts > 1 {
				assert.Equal(t, "the whole response", r.body)
			}
		})
	}
}

// A request that was sent is retried if it is idempotent and its body can be sent
// again.
func TestRetry_OnlyIdempotentRequests(t *testing.T) {
	replayable := func() io.Reader { return strings.NewReader("body") }
	once := func() io.Reader { return io.MultiReader(replayable()) } // http.NewRequest sets no GetBody for it
	none := func() io.Reader { return nil }
	for name, tt := range map[string]struct {
		method   string
		key      string
		body     func() io.Reader
		attempts int
	}{
		"GET":     {method: http.MethodGet, body: none, attempts: 2},
		"HEAD":    {method: http.MethodHead, body: none, attempts: 2},
		"OPTIONS": {method: http.MethodOptions, body: none, attempts: 2},
		"PUT":     {method: http.MethodPut, body: replayable, attempts: 1},
		"DELETE":  {method: http.MethodDelete, body: none, attempts: 1},
		"POST":    {method: http.MethodPost, body: replayable, attempts: 1},

		"POST with a key":                 {method: http.MethodPost, key: "k", body: replayable, attempts: 2},
		"POST with a key, no body":        {method: http.MethodPost, key: "k", body: none, attempts: 2},
		"POST with a key, not replayable": {method: http.MethodPost, key: "k", body: once, attempts: 1},
		"OPTIONS with a body":             {method: http.MethodOptions, body: replayable, attempts: 2},
		"OPTIONS, not replayable":         {method: http.MethodOptions, body: once, attempts: 1},
	} {
		t.Run(name, func(t *testing.T) {
			var bodies []string
			url, _ := serve(t, func(n int, w http.ResponseWriter, r *http.Request) {
				body, err := io.ReadAll(r.Body)
				assert.NoError(t, err)
				bodies = append(bodies, string(body))
				if n == 1 {
					w.WriteHeader(http.StatusServiceUnavailable)
				}
			})
			req := request(t, t.Context(), tt.method, url, tt.body())
			if tt.key != "" {
				req.Header.Set("Idempotency-Key", tt.key)
			}
			r := do(newClient(t, httpclient.Options{}), req)
			require.NoError(t, r.err)
			assert.Equal(t, tt.attempts, r.Attempts)
			require.Len(t, bodies, tt.attempts)
			assert.Equal(t, bodies[0], bodies[len(bodies)-1], "each attempt sends the same body")
		})
	}
}

// After three attempts in all, the call returns the last response.
func TestRetry_ThreeAttemptsThenResponse(t *testing.T) {
	url, requests := serve(t, func(_ int, w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusServiceUnavailable)
		_, _ = io.WriteString(w, "why")
	})
	r := get(t, newClient(t, httpclient.Options{}), url)
	require.NoError(t, r.err)
	assert.Equal(t, http.StatusServiceUnavailable, r.status)
	assert.Equal(t, "why", r.body)
	assert.Equal(t, 3, r.Attempts)
	assert.EqualValues(t, 3, requests.Load())
}

// A call is retried if DNS failed, but not if DNS says that the name does not exist.
func TestRetry_DNSFailure(t *testing.T) {
	client := newClient(t, httpclient.Options{})
	r := get(t, client, "http://unknown.test")
	assert.Equal(t, call.DNS, r.class, "%v", r.err)
	assert.Equal(t, 1, r.Attempts)

	names.Break(true)
	defer names.Break(false)
	r = get(t, client, "http://dns-failure.test")
	assert.Equal(t, call.DNS, r.class, "%v", r.err)
	assert.Equal(t, 3, r.Attempts)
}

// While every call fails, the budget limits attempts to 1.1 for each call, and no
// retry waits for a connection until its deadline.
func TestBudget_LimitsRetriesInOutage(t *testing.T) {
	for name, tt := range map[string]struct {
		class  call.Class
		status int
	}{
		"503":     {class: call.OK, status: http.StatusServiceUnavailable},
		"refused": {class: call.Refused},
	} {
		t.Run(name, func(t *testing.T) {
			const calls = 1000
			host, port := unused(t)
			url, requests := "http://"+join(host, port), new(atomic.Int64)
			if tt.status != 0 {
				url, requests = serve(t, func(_ int, w http.ResponseWriter, _ *http.Request) { w.WriteHeader(tt.status) })
			}
			client := newClient(t, httpclient.Options{})
			var attempts atomic.Int64
			together(calls, 10, func(int) {
				start := time.Now()
				r := get(t, client, url)
				assert.Less(t, time.Since(start), aWhile)
				attempts.Add(int64(r.Attempts))
				assert.Equal(t, tt.class, r.class, "%v", r.err)
				assert.Equal(t, tt.status, r.status)
			})
			assert.LessOrEqual(t, attempts.Load(), int64(calls*1.1))
			assert.Greater(t, attempts.Load(), int64(calls), "calls are retried until the budget is spent")
			if tt.status != 0 {
				assert.Equal(t, requests.Load(), attempts.Load())
			}
		})
	}
}

// Only successful calls refill the budget.
func TestBudget_RefilledBySuccessesOnly(t *testing.T) {
	var code atomic.Int64
	url, _ := serve(t, func(_ int, w http.ResponseWriter, _ *http.Request) { w.WriteHeader(int(code.Load())) })
	client := newClient(t, httpclient.Options{})
	attempts := func(status int, calls int) (last int) {
		code.Store(int64(status))
		for range calls {
			last = get(t, client, url).Attempts
		}
		return last
	}
	assert.Equal(t, 1, attempts(503, 20), "the budget is spent")
	assert.Equal(t, 1, attempts(500, 100), "a 500 is not retried")
	assert.Equal(t, 1, attempts(503, 1), "a 500 does not refill the budget")
	assert.Equal(t, 1, attempts(200, 100))
	assert.Equal(t, 3, attempts(503, 1), "the budget is refilled")
}

// Attempts of idempotent calls that time out spend the budget. Calls that are not
// idempotent have no retry to spend.
func TestBudget_SpentByTimedOutAttempts(t *testing.T) {
	for method, attempts := range map[string]int{ // of a GET after the timeouts
		http.MethodGet:  1,
		http.MethodPost: 3,
	} {
		t.Run(method, func(t *testing.T) {
			t.Parallel()
			var slow atomic.Bool
			slow.Store(true)
			url, _ := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) {
				if slow.Load() {
					hang(w, r)
				} else {
					w.WriteHeader(http.StatusServiceUnavailable)
				}
			})
			client := newClient(t, httpclient.Options{})
			together(30, 30, func(int) {
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				assert.Equal(t, call.Timeout, do(client, request(t, ctx, method, url, nil)).class)
			})
			slow.Store(false)
			assert.Equal(t, attempts, get(t, client, url).Attempts)
		})
	}
}

// Calls that time out do not refill the budget.
func TestBudget_NotRefilledByTimeouts(t *testing.T) {
	var slow atomic.Bool
	url, _ := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) {
		if slow.Load() {
			hang(w, r)
		} else {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})
	client := newClient(t, httpclient.Options{})
	for range 20 {
		get(t, client, url)
	}
	slow.Store(true)
	together(100, 100, func(int) {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		assert.Equal(t, call.Timeout, do(client, request(t, ctx, http.MethodGet, url, nil)).class)
	})
	slow.Store(false)
	assert.Equal(t, 1, get(t, client, url).Attempts, "the budget is still spent")
}

// An attempt without a response ends after half of the remaining time, so that there is
// time for a retry.
func TestRetry_SilentPeerLeavesTime(t *testing.T) {
	const timeout = 2 * time.Second // the default of the services
	for name, tt := range map[string]struct {
		silent   http.HandlerFunc
		times    int
		earliest time.Duration // at which the call may return
	}{
		"twice": {silent: hang, times: 2, earliest: timeout * 3 / 4},
		"in the body": {
			silent: func(w http.ResponseWriter, r *http.Request) { half(w); hang(w, r) },
			times:  1, earliest: timeout / 2,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url, _ := serve(t, func(n int, w http.ResponseWriter, r *http.Request) {
				if n <= tt.times {
					tt.silent(w, r)
				} else {
					ok(w, r)
				}
			})
			start := time.Now()
			r := get(t, newClient(t, httpclient.Options{Timeout: timeout}), url)
			assert.Equal(t, "ok", r.body, "%v", r.err)
			assert.Equal(t, tt.times+1, r.Attempts)
			assert.GreaterOrEqual(t, time.Since(start), tt.earliest, "each silent attempt gets half of the remaining time")
		})
	}
}

// half sends the header and part of the body.
func half(w http.ResponseWriter) {
	w.Header().Set("Content-Length", "10")
	_, _ = io.WriteString(w, "half")
	_ = http.NewResponseController(w).Flush()
}

// The last attempt gets all of the remaining time.
func TestRetry_LastAttemptHasAllTheTime(t *testing.T) {
	t.Parallel()
	const timeout = 2 * time.Second
	url, requests := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) { hang(w, r) })
	start := time.Now()
	r := get(t, newClient(t, httpclient.Options{Timeout: timeout}), url)
	assert.GreaterOrEqual(t, time.Since(start), timeout)
	assert.Equal(t, call.Timeout, r.class, "%v", r.err)
	assert.EqualValues(t, 3, requests.Load())
}

// A request that is not idempotent gets all of the time for its only attempt.
func TestRetry_NotIdempotentHasAllTheTime(t *testing.T) {
	t.Parallel()
	const timeout = time.Second
	url, _ := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) {
		time.Sleep(timeout * 6 / 10)
		ok(w, r)
	})
	r := do(newClient(t, httpclient.Options{Timeout: timeout}), request(t, t.Context(), http.MethodPost, url, nil))
	assert.Equal(t, "ok", r.body, "%v", r.err)
	assert.Equal(t, 1, r.Attempts)
}

// If a pod becomes silent, the budget suffices to retry every call that was in flight.
func TestRetry_CoversCallsInFlight(t *testing.T) {
	t.Parallel()
	const calls = 30
	url, requests := serve(t, func(n int, w http.ResponseWriter, r *http.Request) {
		if n <= calls {
			hang(w, r)
		} else {
			ok(w, r)
		}
	})
	client := newClient(t, httpclient.Options{Timeout: 4 * time.Second})
	together(calls, calls, func(int) {
		r := get(t, client, url)
		assert.Equal(t, "ok", r.body, "%v", r.err)
		assert.Equal(t, 2, r.Attempts)
	})
	assert.EqualValues(t, 2*calls, requests.Load())
}

// If every response takes more than half of the time, calls succeed once the budget is
// spent, because they then get all of the time. Their success does not refill the
// budget.
func TestBudget_SlowPeersGetAllTheTime(t *testing.T) {
	t.Parallel()
	const timeout, calls = time.Second, 20
	url, requests := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) {
		select {
		case <-time.After(timeout * 6 / 10):
			ok(w, r)
		case <-r.Context().Done():
		}
	})
	client := newClient(t, httpclient.Options{Timeout: timeout})
	together(calls, calls, func(int) { get(t, client, url) })
	assert.LessOrEqual(t, requests.Load(), int64(3*calls))
	together(3*calls, calls, func(int) {
		r := get(t, client, url)
		assert.Equal(t, "ok", r.body, "%v", r.err)
		assert.Equal(t, 1, r.Attempts, "slow responses do not refill the budget")
	})
}
