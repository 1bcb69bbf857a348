package kittest

import (
	"context"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Service is a service that runs inside the test's process.
type Service struct {
	Log *Buffer
	// URL is that of HTTP_ADDR, without a path, and AdminURL that of ADMIN_ADDR.
	URL, AdminURL string

	stop context.CancelFunc
	done chan struct{}
	err  error
}

// Serve calls run, the body of a service's main, with an environment that sets at
// least HTTP_ADDR, and waits until the service is ready. The service stops with Stop
// or at the end of the test, which shows its log if the test failed.
func Serve(t testing.TB, run RunFunc, environ map[string]string) *Service {
	t.Helper()
	s := Launch(t, run, environ)
	AwaitReady(t, s.URL)
	return s
}

// RunFunc is the body of a service's main, as in package lifecycle.
type RunFunc = func(ctx context.Context, args []string, environ map[string]string, out io.Writer) error

// Launch is Serve for a service that does not become ready. It waits until the service
// responds.
func Launch(t testing.TB, run RunFunc, environ map[string]string) *Service {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	s := &Service{Log: &Buffer{}, URL: "http://" + environ["HTTP_ADDR"], AdminURL: "http://" + environ["ADMIN_ADDR"], stop: cancel, done: make(chan struct{})}
	go func() {
		defer close(s.done)
		s.err = run(ctx, nil, environ, s.Log)
	}()
	t.Cleanup(func() {
		assert.NoError(t, s.Stop())
		if log := s.Log.String(); t.Failed() && log != "" {
			t.Logf("%s:\n%s", s.URL, log)
		}
	})
	await(t, s.URL+"/livez", "does not respond")
	return s
}

// Stop stops the service, as SIGTERM would, and returns the error of run.
func (s *Service) Stop() error {
	s.stop()
	<-s.done
	return s.err
}

// AwaitReady waits up to 20 seconds until the service at url is ready.
func AwaitReady(t testing.TB, url string) {
	t.Helper()
	await(t, url+"/readyz", "is not ready")
}

// await waits until a GET request of url has the status 200.
func await(t testing.TB, url, failure string) {
	t.Helper()
	transport := &http.Transport{DisableKeepAlives: true}
	require.Eventually(t, func() bool {
		resp, err := transport.RoundTrip(request(t, url))
		if err != nil {
			return false
		}
		_ = resp.Body.Close() // only the status is needed
		return resp.StatusCode == http.StatusOK
	}, 20*time.Second, 10*time.Millisecond, "%s %s", url, failure)
}

// request returns a GET request.
func request(t testing.TB, url string) *http.Request {
	t.Helper()
	req, err := http.NewRequestWithContext(context.Background(), http.MethodGet, url, nil)
	require.NoError(t, err)
	return req
}

// Get sends a GET request on a new connection and returns status, header and body.
func Get(t testing.TB, url string) (int, http.Header, string) {
	t.Helper()
	return Do(t, request(t, url))
}

// Do sends a request on a new connection and returns status, header and body.
func Do(t testing.TB, req *http.Request) (int, http.Header, string) {
	t.Helper()
	transport := &http.Transport{DisableKeepAlives: true, ExpectContinueTimeout: 10 * time.Second}
	resp, err := transport.RoundTrip(req)
	require.NoError(t, err)
	defer resp.Body.Close() //nolint:errcheck // the body is read to its end
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return resp.StatusCode, resp.Header, string(body)
}

// Eventually polls until condition is true. The test fails with description after 20
// seconds, which is long enough for a busy machine. It is not for measuring time.
func Eventually(t testing.TB, condition func() bool, description string) {
	t.Helper()
	require.Eventually(t, condition, 20*time.Second, 10*time.Millisecond, description)
}
