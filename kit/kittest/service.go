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

// Service is a service that runs inside its test.
type Service struct {
	Log *Buffer
	// URL is http:// and HTTP_ADDR.
	URL  string
	stop context.CancelFunc
	done chan struct{}
	err  error
}

// Serve runs a service's run function with an environment, and waits until it
// is ready. It stops when the test ends, or at Stop.
func Serve(t testing.TB, run func(ctx context.Context, args []string, environ map[string]string, out io.Writer) error, environ map[string]string) *Service {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	s := &Service{Log: &Buffer{}, URL: "http://" + environ["HTTP_ADDR"], stop: cancel, done: make(chan struct{})}
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
	AwaitReady(t, s.URL)
	return s
}

// Stop ends the service as SIGTERM would, and returns what run returned.
func (s *Service) Stop() error {
	s.stop()
	<-s.done
	return s.err
}

// AwaitReady waits until the service at url says that it is ready.
func AwaitReady(t testing.TB, url string) {
	t.Helper()
	transport := &http.Transport{DisableKeepAlives: true}
	require.Eventually(t, func() bool {
		resp, err := transport.RoundTrip(request(t, url+"/readyz"))
		if err != nil {
			return false
		}
		_ = resp.Body.Close() // its status is all that is asked
		return resp.StatusCode == http.StatusOK
	}, 20*time.Second, 10*time.Millisecond, "%s is not ready", url)
}

func request(t testing.TB, url string) *http.Request {
	t.Helper()
	req, err := http.NewRequestWithContext(context.Background(), http.MethodGet, url, nil)
	require.NoError(t, err)
	return req
}

// Get asks url on a connection of its own and returns status, header and body.
func Get(t testing.TB, url string) (int, http.Header, string) {
	t.Helper()
	return Do(t, request(t, url))
}

// Do sends any request in the same way.
func Do(t testing.TB, req *http.Request) (int, http.Header, string) {
	t.Helper()
	transport := &http.Transport{DisableKeepAlives: true, ExpectContinueTimeout: 10 * time.Second}
	resp, err := transport.RoundTrip(req)
	require.NoError(t, err)
	defer resp.Body.Close() //nolint:errcheck // read whole below
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return resp.StatusCode, resp.Header, string(body)
}

// Eventually polls until condition holds; it is for what takes a moment, and
// the limit is far beyond that moment, so that a busy machine does not matter.
func Eventually(t testing.TB, condition func() bool, what string) {
	t.Helper()
	require.Eventually(t, condition, 20*time.Second, 10*time.Millisecond, what)
}
