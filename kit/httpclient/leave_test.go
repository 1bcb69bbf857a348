package httpclient_test

import (
	"io"
	"net"
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

func TestSickPodAmongManyIsLeft(t *testing.T) {
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
			assert.Less(t, met.Load(), int64(tt.calls/10), "the sick one's requests")
			if tt.atATime == 1 {
				assert.Zero(t, failed.Load())
			} else { // of those at the same time, the budget covers a few
				assert.Less(t, failed.Load(), int64(tt.calls/20))
			}
		})
	}
}

// connections notes on which connection of a server each request came, and how
// many connections are open.
type connections struct {
	mu   sync.Mutex
	of   []string
	open map[net.Conn]bool
}

func (c *connections) serve(t *testing.T, answer http.HandlerFunc) (url string) {
	t.Helper()
	c.open = map[net.Conn]bool{}
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c.mu.Lock()
		c.of = append(c.of, r.RemoteAddr)
		c.mu.Unlock()
		answer(w, r)
	}))
	s.Config.ConnState = func(conn net.Conn, state http.ConnState) {
		c.mu.Lock()
		defer c.mu.Unlock()
		if state == http.StateClosed {
			delete(c.open, conn)
		} else {
			c.open[conn] = true
		}
	}
	s.Start()
	t.Cleanup(s.Close)
	return s.URL
}

func (c *connections) areOpen() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.open)
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

func TestConnectionIsLeftWhereAnotherMayFareBetter(t *testing.T) {
	body := func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "why", http.StatusServiceUnavailable) }
	for name, tt := range map[string]struct {
		method   string
		answer   http.HandlerFunc
		attempts int
		left     bool
	}{
		"502":                              {http.MethodGet, status(502), 3, true},
		"503":                              {http.MethodGet, status(503), 3, true},
		"504":                              {http.MethodGet, status(504), 3, true},
		"503 with a body":                  {http.MethodGet, body, 3, true},
		"503, try at once":                 {http.MethodGet, status(503, "Retry-After", "0"), 3, true},
		"503 to what is not repeated":      {http.MethodPost, status(503), 1, true},
		"503, overloaded":                  {http.MethodGet, status(503, "Retry-After", "1"), 1, false},
		"500":                              {http.MethodGet, status(500), 1, true},
		"429, which is not another's case": {http.MethodGet, status(429), 1, false},
	} {
		t.Run(name, func(t *testing.T) {
			var seen connections
			url := seen.serve(t, tt.answer)
			client := newClient(t, httpclient.Options{})
			first := do(client, request(t, t.Context(), tt.method, url, nil))
			assert.NoError(t, first.err)
			assert.Equal(t, tt.attempts, first.Attempts)
			second := do(client, request(t, t.Context(), tt.method, url, nil))
			assert.NoError(t, second.err)
			used, open := 1, 1
			if tt.left {
				used, open = first.Attempts+second.Attempts, 0
			}
			assert.Equal(t, used, seen.used(), "each attempt has another")
			kittest.Eventually(t, func() bool { return seen.areOpen() == open }, "and the one before is closed")
		})
	}
}

func TestNoRequestIsLostWithAConnectionThatIsLeft(t *testing.T) {
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
				assert.NoError(t, do(client, request(t, t.Context(), http.MethodPost, url, body())).err)
			})
			assert.EqualValues(t, calls, requests.Load(), "each was answered once")
		})
	}
}

func TestSickAddressIsTriedLast(t *testing.T) {
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
			assert.LessOrEqual(t, met.Load(), int64(1), "the address that has the fewest connections")
		})
	}
}
