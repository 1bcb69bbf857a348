package httpclient_test

import (
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"

	"example.com/tandem/kit/httpclient"
	"example.com/tandem/kit/kittest"
)

// Behind a virtual IP a connection is a pod. One that fails is left by the
// retry, so that no call fails and the pod gets few.
func TestClient_LeavesFailingPodBehindVIP(t *testing.T) {
	withBody := func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "sick", http.StatusServiceUnavailable) }
	for name, tt := range map[string]struct {
		method  string
		sick    http.HandlerFunc
		oneIn   int // of its requests fails
		calls   int
		atATime int
		traced  bool
	}{
		"503":                      {http.MethodGet, withBody, 1, 300, 1, false},
		"503, no body":             {http.MethodGet, status(503), 1, 300, 1, false},
		"503 to HEAD":              {http.MethodHead, withBody, 1, 300, 1, false},
		"503, with spans":          {http.MethodGet, withBody, 1, 300, 1, true},
		"30 %":                     {http.MethodGet, withBody, 3, 300, 1, false},
		"503, 10 at a time":        {http.MethodGet, withBody, 1, 1000, 10, false},
		"no body, 10 at a time":    {http.MethodGet, status(503), 1, 1000, 10, false},
		"with spans, 10 at a time": {http.MethodGet, withBody, 1, 1000, 10, true},
		"30 %, 10 at a time":       {http.MethodGet, withBody, 3, 1000, 10, false},
	} {
		t.Run(name, func(t *testing.T) {
			healthy, _ := serve(t, func(n int, w http.ResponseWriter, r *http.Request) {
				if n%100 == 0 {
					w.Header().Set("Connection", "close") // to put the next call to the test
				}
				ok(w, r)
			})
			sick, met := serve(t, func(n int, w http.ResponseWriter, r *http.Request) {
				if n%tt.oneIn == 0 {
					tt.sick(w, r)
				} else {
					ok(w, r)
				}
			})
			url := clusterIP(t, sick, healthy)
			tel := kittest.Telemetry(t, io.Discard)
			if tt.traced {
				tel.Traces = sdktrace.NewTracerProvider()
			}
			client := newClient(t, httpclient.Options{Telemetry: tel})
			var failed atomic.Int64
			together(tt.calls, tt.atATime, func(int) {
				r := do(client, request(t, t.Context(), tt.method, url, nil))
				assert.NoError(t, r.err)
				if r.status != http.StatusOK {
					failed.Add(1)
				}
			})
			assert.Less(t, met.Load(), int64(tt.calls/4), "half of the requests would be its share")
			if tt.atATime == 1 {
				assert.Zero(t, failed.Load())
			} else { // three new connections may all lead to the one that fails
				assert.LessOrEqual(t, failed.Load(), int64(tt.atATime))
			}
		})
	}
}

// connections notes on which connection of a server each request came.
type connections struct {
	mu sync.Mutex
	of []string
}

func (c *connections) serve(t *testing.T, answer http.HandlerFunc) (url string) {
	t.Helper()
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c.mu.Lock()
		c.of = append(c.of, r.RemoteAddr)
		c.mu.Unlock()
		answer(w, r)
	}))
	s.Start()
	t.Cleanup(s.Close)
	return s.URL
}

func (c *connections) used() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	distinct := map[string]bool{}
	for _, addr := range c.of {
		distinct[addr] = true
	}
	return len(distinct)
}

// A retry takes another connection. Without a retry the connection stays: to
// close it would cost a handshake for each failure of an overloaded server.
func TestClient_OnlyRetriesTakeNewConnections(t *testing.T) {
	body := func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "why", http.StatusServiceUnavailable) }
	for name, tt := range map[string]struct {
		method      string
		answer      http.HandlerFunc
		calls       int
		connections int // at most
	}{
		"retried": {
			method: http.MethodGet, answer: status(503),
			calls: 1, connections: 3,
		},
		"retried, with a body": {
			method: http.MethodGet, answer: body,
			calls: 1, connections: 3,
		},
		"no budget left": {
			method: http.MethodGet, answer: body,
			calls: 100, connections: 15,
		},
		"not idempotent, 500": {
			method: http.MethodPost, answer: status(500),
			calls: 100, connections: 1,
		},
		"not idempotent, 503": {
			method: http.MethodPost, answer: status(503),
			calls: 100, connections: 1,
		},
		"not retryable": {
			method: http.MethodGet, answer: status(500),
			calls: 100, connections: 1,
		},
	} {
		t.Run(name, func(t *testing.T) {
			var seen connections
			url := seen.serve(t, tt.answer)
			client := newClient(t, httpclient.Options{})
			for range tt.calls {
				assert.NoError(t, do(client, request(t, t.Context(), tt.method, url, nil)).err)
			}
			if tt.calls == 1 {
				assert.Equal(t, tt.connections, seen.used(), "each attempt has its own")
			}
			assert.LessOrEqual(t, seen.used(), tt.connections)
		})
	}
}

// A request that is given a connection which was retired takes another, even if
// it could not be retried.
func TestClient_LosesNothingWithRetiredConnection(t *testing.T) {
	const calls, atATime = 1000, 30
	for name, body := range map[string]func() io.Reader{
		"no body":       func() io.Reader { return nil },
		"body":          func() io.Reader { return strings.NewReader("question") },
		"large body":    func() io.Reader { return strings.NewReader(strings.Repeat("question", 10_000)) },
		"body had once": func() io.Reader { return io.MultiReader(strings.NewReader("question")) },
	} {
		t.Run(name, func(t *testing.T) {
			url, requests := serve(t, func(n int, w http.ResponseWriter, r *http.Request) {
				_, err := io.Copy(io.Discard, r.Body)
				assert.NoError(t, err)
				switch n % 6 {
				case 0:
					http.Error(w, "why", http.StatusServiceUnavailable)
				case 3: // net/http hands the connection on before we see it
					w.WriteHeader(http.StatusServiceUnavailable)
				default:
					ok(w, r)
				}
			})
			client := newClient(t, httpclient.Options{})
			together(calls, atATime, func(int) {
				method := http.MethodPost
				if rand.IntN(2) == 0 {
					method = http.MethodGet // whose retries retire connections
				}
				assert.NoError(t, do(client, request(t, t.Context(), method, url, body())).err)
			})
			assert.GreaterOrEqual(t, requests.Load(), int64(calls))
		})
	}
}

// An address that fails or is silent gets no calls while another responds.
func TestClient_EjectsFailingAddress(t *testing.T) {
	for name, sick := range map[string]http.HandlerFunc{"503": status(503), "silent": hang} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			const calls = 100
			port, hosts := kittest.FreePort(), kittest.Loopbacks(t, 2)
			var met atomic.Int64
			pod(t, join(hosts[0], port), 0, func(w http.ResponseWriter, r *http.Request) {
				met.Add(1)
				sick(w, r)
			})
			pod(t, join(hosts[1], port), time.Nanosecond, ok) // a connection a call
			target := "sick-" + strings.ToLower(name) + ".test"
			names.Set(target, hosts...)
			client := newClient(t, httpclient.Options{Timeout: 2 * time.Second})
			for range calls {
				r := get(t, client, "http://"+target+":"+port)
				assert.Equal(t, "ok", r.body, "%v", r.err)
			}
			assert.LessOrEqual(t, met.Load(), int64(6), "five failures eject it")
		})
	}
}
