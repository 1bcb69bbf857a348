package httpclient_test

import (
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"example.com/tandem/kit/httpclient"
)

// startProxy starts a proxy that forwards each request to the next backend, like a
// sidecar of a mesh. If a backend fails, the proxy responds 502 and skips it from then on.
func startProxy(t *testing.T, backends ...*httptest.Server) (proxyURL string) {
	t.Helper()
	var turn atomic.Int64
	var proxies []*httputil.ReverseProxy
	failed := make([]atomic.Bool, len(backends))
	upstream := &http.Transport{}
	for i, backend := range backends {
		to, err := url.Parse(backend.URL)
		require.NoError(t, err)
		proxies = append(proxies, &httputil.ReverseProxy{
			Rewrite:   func(r *httputil.ProxyRequest) { r.SetURL(to) },
			Transport: upstream,
			ErrorLog:  log.New(io.Discard, "", 0), // net/http reports the killed backend
			ErrorHandler: func(w http.ResponseWriter, _ *http.Request, _ error) {
				failed[i].Store(true)
				w.WriteHeader(http.StatusBadGateway)
			},
		})
	}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		next := int(turn.Add(1)) % len(proxies)
		for i := 1; i < len(proxies) && failed[next].Load(); i++ {
			next = (next + 1) % len(proxies)
		}
		proxies[next].ServeHTTP(w, r)
	}))
	t.Cleanup(func() {
		s.Close()
		upstream.CloseIdleConnections()
	})
	return s.URL
}

// startBackends starts three servers with one handler, and counts their requests.
func startBackends(t *testing.T, handler http.HandlerFunc) (backends []*httptest.Server, requests *atomic.Int64) {
	t.Helper()
	requests = new(atomic.Int64)
	for range 3 {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			requests.Add(1)
			handler(w, r)
		}))
		t.Cleanup(s.Close)
		backends = append(backends, s)
	}
	return backends, requests
}

// Behind a proxy that balances calls, a backend that is killed fails no call.
func TestProxy_LosesNoCall(t *testing.T) {
	const calls = 4000
	backends, _ := startBackends(t, func(w http.ResponseWriter, r *http.Request) {
		time.Sleep(5 * time.Millisecond)
		ok(w, r)
	})
	proxyURL := startProxy(t, backends...)
	client := newClient(t, httpclient.Options{})
	var ended, lost, retried atomic.Int64
	killed := make(chan struct{})
	go func() {
		defer close(killed)
		for ended.Load() < calls/2 && !t.Failed() {
			time.Sleep(time.Millisecond)
		}
		_ = backends[0].Listener.Close()
		backends[0].CloseClientConnections()
	}()
	together(calls, 50, func(int) {
		r := get(t, client, proxyURL)
		if r.err != nil || r.status != http.StatusOK {
			lost.Add(1)
		}
		if r.Attempts > 1 {
			retried.Add(1)
		}
		ended.Add(1)
	})
	<-killed
	assert.Zero(t, lost.Load(), "of %d calls", calls)
	assert.Positive(t, retried.Load(), "calls were in flight at the killed backend")
}

// While every backend of a proxy responds 503, 1,000 calls make at most 1,100 attempts.
func TestProxy_OutageLimitsRetries(t *testing.T) {
	const calls = 1000
	backends, requests := startBackends(t, status(http.StatusServiceUnavailable))
	proxyURL := startProxy(t, backends...)
	client := newClient(t, httpclient.Options{})
	together(calls, 10, func(int) {
		assert.Equal(t, http.StatusServiceUnavailable, get(t, client, proxyURL).status)
	})
	assert.LessOrEqual(t, requests.Load(), int64(calls*11/10))
	assert.Greater(t, requests.Load(), int64(calls), "calls are retried until the budget is spent")
}
