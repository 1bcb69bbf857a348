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

// Behind a ClusterIP a connection leads to one pod. A retry takes another connection,
// so that no call fails and a pod that fails gets few requests.
func TestClient_LeavesFailingPodOfClusterIP(t *testing.T) {
	withBody := func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "unavailable", http.StatusServiceUnavailable)
	}
	for name, tt := range map[string]struct {
		method      string
		failure     http.HandlerFunc
		oneIn       int // one in so many of the pod's requests fails
		calls       int
		concurrency int
		traced      bool
	}{
		"503": {
			method: http.MethodGet, failure: withBody, oneIn: 1,
			calls: 300, concurrency: 1,
		},
		"503, no body": {
			method: http.MethodGet, failure: status(503), oneIn: 1,
			calls: 300, concurrency: 1,
		},
		"503 to HEAD": {
			method: http.MethodHead, failure: withBody, oneIn: 1,
			calls: 300, concurrency: 1,
		},
		"503, with spans": {
			method: http.MethodGet, failure: withBody, oneIn: 1,
			calls: 300, concurrency: 1, traced: true,
		},
		"30 %": {
			method: http.MethodGet, failure: withBody, oneIn: 3,
			calls: 300, concurrency: 1,
		},
		"503, 10 at a time": {
			method: http.MethodGet, failure: withBody, oneIn: 1,
			calls: 1000, concurrency: 10,
		},
		"no body, 10 at a time": {
			method: http.MethodGet, failure: status(503), oneIn: 1,
			calls: 1000, concurrency: 10,
		},
		"with spans, 10 at a time": {
			method: http.MethodGet, failure: withBody, oneIn: 1,
			calls: 1000, concurrency: 10, traced: true,
		},
		"30 %, 10 at a time": {
			method: http.MethodGet, failure: withBody, oneIn: 3,
			calls: 1000, concurrency: 10,
		},
	} {
		t.Run(name, func(t *testing.T) {
			healthy, _ := serve(t, func(n int, w http.ResponseWriter, r *http.Request) {
				if n%100 == 0 {
					w.Header().Set("Connection", "close") // the next call needs another connection
				}
				ok(w, r)
			})
			failing, requests := serve(t, func(n int, w http.ResponseWriter, r *http.Request) {
				if n%tt.oneIn == 0 {
					tt.failure(w, r)
				} else {
					ok(w, r)
				}
			})
			url := clusterIP(t, failing, healthy)
			tel := kittest.Telemetry(t, io.Discard)
			if tt.traced {
				tel.Traces = sdktrace.NewTracerProvider()
			}
			client := newClient(t, httpclient.Options{Telemetry: tel})
			var failed atomic.Int64
			together(tt.calls, tt.concurrency, func(int) {
				r := do(client, request(t, t.Context(), tt.method, url, nil))
				assert.NoError(t, r.err)
				if r.status != http.StatusOK {
					failed.Add(1)
				}
			})
			assert.Less(t, requests.Load(), int64(tt.calls/4), "half of the requests is its share")
			if tt.concurrency == 1 {
				assert.Zero(t, failed.Load())
			} else { // the connections of all three attempts may lead to the failing pod
				assert.LessOrEqual(t, failed.Load(), int64(tt.concurrency))
			}
		})
	}
}

// connections records the connection of each request to a server.
type connections struct {
	mu    sync.Mutex
	addrs []string // the client's address, by request
}

func (c *connections) serve(t *testing.T, handler http.HandlerFunc) (url string) {
	t.Helper()
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c.mu.Lock()
		c.addrs = append(c.addrs, r.RemoteAddr)
		c.mu.Unlock()
		handler(w, r)
	}))
	s.Start()
	t.Cleanup(s.Close)
	return s.URL
}

// used returns the number of connections.
func (c *connections) used() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	distinct := map[string]bool{}
	for _, addr := range c.addrs {
		distinct[addr] = true
	}
	return len(distinct)
}

// A retry takes another connection. A failure without a retry leaves the connection
// open: closing it would cost an overloaded server a handshake for each failure.
func TestClient_OnlyRetriesTakeNewConnections(t *testing.T) {
	body := func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "why", http.StatusServiceUnavailable) }
	for name, tt := range map[string]struct {
		method      string
		handler     http.HandlerFunc
		calls       int
		connections int // at most
	}{
		"retried": {
			method: http.MethodGet, handler: status(503),
			calls: 1, connections: 3,
		},
		"retried, with a body": {
			method: http.MethodGet, handler: body,
			calls: 1, connections: 3,
		},
		"no budget left": {
			method: http.MethodGet, handler: body,
			calls: 100, connections: 15,
		},
		"not idempotent, 500": {
			method: http.MethodPost, handler: status(500),
			calls: 100, connections: 1,
		},
		"not idempotent, 503": {
			method: http.MethodPost, handler: status(503),
			calls: 100, connections: 1,
		},
		"not retryable": {
			method: http.MethodGet, handler: status(500),
			calls: 100, connections: 1,
		},
	} {
		t.Run(name, func(t *testing.T) {
			var seen connections
			url := seen.serve(t, tt.handler)
			client := newClient(t, httpclient.Options{})
			for range tt.calls {
				assert.NoError(t, do(client, request(t, t.Context(), tt.method, url, nil)).err)
			}
			if tt.calls == 1 {
				assert.Equal(t, tt.connections, seen.used(), "each attempt has a connection of its own")
			}
			assert.LessOrEqual(t, seen.used(), tt.connections)
		})
	}
}

// A request that is given a retired connection takes another one and succeeds, even if
// the request could not be retried.
func TestClient_ReplacesRetiredConnection(t *testing.T) {
	const calls, concurrency = 1000, 30
	for name, body := range map[string]func() io.Reader{
		"no body":             func() io.Reader { return nil },
		"body":                func() io.Reader { return strings.NewReader("payload") },
		"large body":          func() io.Reader { return strings.NewReader(strings.Repeat("payload", 10_000)) },
		"body not replayable": func() io.Reader { return io.MultiReader(strings.NewReader("payload")) },
	} {
		t.Run(name, func(t *testing.T) {
			url, requests := serve(t, func(n int, w http.ResponseWriter, r *http.Request) {
				_, err := io.Copy(io.Discard, r.Body)
				assert.NoError(t, err)
				switch n % 6 {
				case 0:
					http.Error(w, "why", http.StatusServiceUnavailable)
				case 3: // without a body: net/http pools the connection before the attempt has the response
					w.WriteHeader(http.StatusServiceUnavailable)
				default:
					ok(w, r)
				}
			})
			client := newClient(t, httpclient.Options{Timeout: time.Minute}) // a busy machine may need long to dial
			together(calls, concurrency, func(int) {
				method := http.MethodPost
				if rand.IntN(2) == 0 {
					method = http.MethodGet // retries of GET retire connections
				}
				assert.NoError(t, do(client, request(t, t.Context(), method, url, body())).err)
			})
			assert.GreaterOrEqual(t, requests.Load(), int64(calls))
		})
	}
}

// Behind a ClusterIP, one pod of three that hangs or breaks connections fails no call
// while the others serve. A retry takes a connection that has served a call, because a
// new connection may lead to the same pod.
func TestClient_RetriesOnServedConnections(t *testing.T) {
	for name, faulty := range map[string]http.HandlerFunc{
		"hangs":              hang,
		"breaks connections": breakOff("", true),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var failing atomic.Bool
			serves := func(w http.ResponseWriter, r *http.Request) {
				time.Sleep(20 * time.Millisecond)
				ok(w, r)
			}
			a, _ := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) { serves(w, r) })
			b, _ := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) { serves(w, r) })
			c, _ := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) {
				if failing.Load() {
					faulty(w, r)
				} else {
					serves(w, r)
				}
			})
			url := clusterIP(t, a, b, c)
			client := newClient(t, httpclient.Options{Timeout: 2 * time.Second})
			together(100, 50, func(int) { assert.NoError(t, get(t, client, url).err) })
			failing.Store(true)
			var calls atomic.Int64
			until := time.Now().Add(4 * time.Second)
			together(50, 50, func(int) {
				for time.Now().Before(until) {
					calls.Add(1)
					r := get(t, client, url)
					assert.Equal(t, "ok", r.body, "%d attempts: %v", r.Attempts, r.err)
				}
			})
			t.Logf("%d calls", calls.Load())
		})
	}
}
