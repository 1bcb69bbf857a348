package httpserver_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"example.com/tandem/kit/httpserver"
)

// 50 callers that send POSTs without a pause lose none when the server drains and shuts
// down. net/http's client does not retry a POST that may have reached the server. A
// refused connection loses nothing: no request was sent.
func TestServer_DrainLosesNothing(t *testing.T) {
	t.Parallel()
	const callers, shutdowns = 50, 5
	for _, delay := range []time.Duration{0, 100 * time.Millisecond} { // between StartDraining and Shutdown
		var calls, lost atomic.Int64
		for range shutdowns {
			s := serve(t, httpserver.Options{}, func(s *httpserver.Server) { s.API.Post("/hello", hello) })
			transport := &http.Transport{MaxIdleConnsPerHost: callers}
			c := &http.Client{Transport: transport, Timeout: testTimeout}
			// The body can be read once only, so the client cannot retry.
			post := func() error {
				req, err := http.NewRequest(http.MethodPost, s.URL+"/hello", io.NopCloser(strings.NewReader("body")))
				if err != nil {
					return err
				}
				resp, err := c.Do(req)
				if err != nil {
					return err
				}
				defer resp.Body.Close() //nolint:errcheck // read whole below
				_, err = io.Copy(io.Discard, resp.Body)
				return err
			}
			var wg sync.WaitGroup
			for range callers {
				wg.Go(func() {
					for {
						switch err := post(); {
						case err == nil:
							calls.Add(1)
						case errors.Is(err, syscall.ECONNREFUSED):
							return
						default:
							lost.Add(1)
							if lost.Load() < 5 {
								t.Log(err)
							}
						}
					}
				})
			}
			time.Sleep(200 * time.Millisecond)
			s.StartDraining()
			time.Sleep(delay)
			ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
			require.NoError(t, s.Shutdown(ctx))
			cancel()
			wg.Wait()
			transport.CloseIdleConnections()
		}
		t.Logf("Shutdown %s after StartDraining: %d of %d calls lost over %d shutdowns", delay, lost.Load(), calls.Load()+lost.Load(), shutdowns)
		assert.Zero(t, lost.Load())
	}
}

// A response also closes the connection if its request arrived before the drain.
func TestServer_DrainReachesRequestsInFlight(t *testing.T) {
	t.Parallel()
	started, release := make(chan struct{}), make(chan struct{})
	s := serve(t, httpserver.Options{}, func(s *httpserver.Server) {
		s.API.Get("/slow", func(w http.ResponseWriter, r *http.Request) {
			close(started)
			<-release
			hello(w, r)
		})
	})
	closed := make(chan bool, 1)
	go func() {
		resp, err := client(t).Get(s.URL + "/slow")
		if err == nil {
			_ = resp.Body.Close() // otherwise its connection would stay open after the test
		}
		closed <- err == nil && resp.Close
	}()
	<-started
	s.StartDraining()
	close(release)
	assert.True(t, <-closed)
}
