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

func status(code int, header ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		if len(header) > 0 {
			w.Header().Set(header[0], header[1])
		}
		w.WriteHeader(code)
	}
}

// breakOff sends half of an answer and closes the connection, politely or not.
func breakOff(half string, reset bool) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		conn, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			panic(err)
		}
		_, _ = io.WriteString(conn, half)
		if reset {
			_ = conn.(*net.TCPConn).SetLinger(0)
		}
		_ = conn.Close()
	}
}

func TestRetryWhereItMayHelp(t *testing.T) {
	longAway := time.Now().Add(time.Hour).UTC().Format(http.TimeFormat)
	for name, tt := range map[string]struct {
		first    http.HandlerFunc // later requests are answered 200
		attempts int
		status   int
	}{
		"200":                      {status(200), 1, 200},
		"404":                      {status(404), 1, 404},
		"429":                      {status(429), 1, 429},
		"500":                      {status(500), 1, 500},
		"502":                      {status(502), 2, 200},
		"503":                      {status(503), 2, 200},
		"504":                      {status(504), 2, 200},
		"503, try at once":         {status(503, "Retry-After", "0"), 2, 200},
		"503, try in a second":     {status(503, "Retry-After", "1"), 2, 200},
		"503, try in 300 years":    {status(503, "Retry-After", "10000000000"), 1, 503},
		"503, try at a date":       {status(503, "Retry-After", longAway), 1, 503},
		"503, try in 9999":         {status(503, "Retry-After", "Fri, 31 Dec 9999 23:59:59 GMT"), 1, 503},
		"503, try in the past":     {status(503, "Retry-After", "Thu, 01 Jan 1970 00:00:00 GMT"), 2, 200},
		"reset":                    {breakOff("", true), 2, 200},
		"end before the answer":    {breakOff("", false), 2, 200},
		"end amid the header":      {breakOff("HTTP/1.1 200 OK\r\nX: y\r\n", false), 2, 200},
		"end amid the body":        {breakOff("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nwho", false), 2, 200},
		"end amid the chunks":      {breakOff("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nwho\r\n", false), 2, 200},
		"not HTTP, which stays so": {breakOff("220 smtp.test\r\n", false), 1, 0},
	} {
		t.Run(name, func(t *testing.T) {
			url, requests := serve(t, func(n int, w http.ResponseWriter, r *http.Request) {
				if n == 1 {
					tt.first(w, r)
				} else {
					_, _ = io.WriteString(w, "the whole answer")
				}
			})
			r := get(t, newClient(t, httpclient.Options{}), url)
			assert.Equal(t, tt.attempts, r.Attempts)
			assert.EqualValues(t, tt.attempts, requests.Load())
			assert.Equal(t, tt.status, r.status, "%v", r.err)
			if r.Attempts > 1 {
				assert.Equal(t, "the whole answer", r.body)
			}
		})
	}
}

func TestRetryOnlyWhatIsSafeToRepeat(t *testing.T) {
	replayable := func() io.Reader { return strings.NewReader("question") }
	once := func() io.Reader { return io.MultiReader(replayable()) } // http.NewRequest cannot make a GetBody of it
	none := func() io.Reader { return nil }
	for name, tt := range map[string]struct {
		method   string
		key      string
		body     func() io.Reader
		attempts int
	}{
		"GET":                         {http.MethodGet, "", none, 2},
		"HEAD":                        {http.MethodHead, "", none, 2},
		"OPTIONS":                     {http.MethodOptions, "", none, 2},
		"PUT":                         {http.MethodPut, "", replayable, 1},
		"DELETE":                      {http.MethodDelete, "", none, 1},
		"POST":                        {http.MethodPost, "", replayable, 1},
		"POST with a key":             {http.MethodPost, "k", replayable, 2},
		"POST with a key and no body": {http.MethodPost, "k", none, 2},
		"POST with a key, body gone":  {http.MethodPost, "k", once, 1},
		"OPTIONS with a body":         {http.MethodOptions, "", replayable, 2},
		"OPTIONS, body gone":          {http.MethodOptions, "", once, 1},
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
			assert.Equal(t, bodies[0], bodies[len(bodies)-1], "the same body again")
		})
	}
}

func TestRetryThreeTimesInAllAndThenHandOverTheAnswer(t *testing.T) {
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

func TestResolverInTroubleIsAskedAgainAndAnUnknownNameIsNot(t *testing.T) {
	client := newClient(t, httpclient.Options{})
	r := get(t, client, "http://nobody.test")
	assert.Equal(t, call.DNS, r.class, "%v", r.err)
	assert.Equal(t, 1, r.Attempts)

	names.Break(true)
	defer names.Break(false)
	r = get(t, client, "http://trouble.test")
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

func TestBudgetIsEarnedBySuccessAlone(t *testing.T) {
	var answer atomic.Int64
	url, _ := serve(t, func(_ int, w http.ResponseWriter, _ *http.Request) { w.WriteHeader(int(answer.Load())) })
	client := newClient(t, httpclient.Options{})
	attempts := func(status int, calls int) (last int) {
		answer.Store(int64(status))
		for range calls {
			last = get(t, client, url).Attempts
		}
		return last
	}
	assert.Equal(t, 1, attempts(503, 20), "spent")
	assert.Equal(t, 1, attempts(500, 100), "never retried")
	assert.Equal(t, 1, attempts(503, 1), "a failure that is not retried earns nothing")
	assert.Equal(t, 1, attempts(200, 100))
	assert.Equal(t, 3, attempts(503, 1), "earned")
}

func TestBudgetIsSpentByAttemptsThatTimeOutAndNotByCallsThatDo(t *testing.T) {
	for method, attempts := range map[string]int{
		http.MethodGet:  1, // each was to leave time for another attempt
		http.MethodPost: 3, // as if nothing had been
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

func TestTimeoutsEarnNothing(t *testing.T) {
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
	assert.Equal(t, 1, get(t, client, url).Attempts, "spent as before")
}

func TestSilentPeerLeavesTimeToAskAnother(t *testing.T) {
	const timeout = 2 * time.Second // the services' own
	for name, tt := range map[string]struct {
		silent   http.HandlerFunc
		times    int
		earliest time.Duration // at which the answer may come
	}{
		"twice":           {hang, 2, timeout * 3 / 4},
		"amid the answer": {func(w http.ResponseWriter, r *http.Request) { half(w); hang(w, r) }, 1, timeout / 2},
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
			assert.GreaterOrEqual(t, time.Since(start), tt.earliest, "an attempt has half of the time that is left")
		})
	}
}

// half of an answer.
func half(w http.ResponseWriter) {
	w.Header().Set("Content-Length", "10")
	_, _ = io.WriteString(w, "half")
	_ = http.NewResponseController(w).Flush()
}

func TestLastAttemptHasAllTheTimeThatIsLeft(t *testing.T) {
	t.Parallel()
	const timeout = 2 * time.Second
	url, requests := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) { hang(w, r) })
	start := time.Now()
	r := get(t, newClient(t, httpclient.Options{Timeout: timeout}), url)
	assert.GreaterOrEqual(t, time.Since(start), timeout)
	assert.Equal(t, call.Timeout, r.class, "%v", r.err)
	assert.EqualValues(t, 3, requests.Load())
}

func TestRequestThatIsNotRepeatedHasAllTheTime(t *testing.T) {
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

// Each of them was given half of its time for the sake of another attempt.
func TestAllThatWereUnderWayToAPodThatFellSilentAreAskedAgain(t *testing.T) {
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

func TestPeersThatAreAllSlowAreWaitedForOnceTheBudgetIsSpent(t *testing.T) {
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
		assert.Equal(t, 1, r.Attempts, "their answers earn no budget")
	})
}
