package httpserver_test

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"example.com/tandem/kit/health"
	"example.com/tandem/kit/httpserver"
	"example.com/tandem/kit/instance"
	"example.com/tandem/kit/kittest"
	"example.com/tandem/kit/lifecycle"
)

// asker asks again and again on one connection, of which net/http's client
// makes no promise: on a busy machine it opens another now and then.
func asker(t *testing.T, s *served) (ask func() *http.Response, conn net.Conn) {
	t.Helper()
	conn = s.dial(t)
	answers := bufio.NewReader(conn)
	return func() *http.Response {
		_, err := io.WriteString(conn, "GET /hello HTTP/1.1\r\nHost: test\r\n\r\n")
		require.NoError(t, err)
		resp, err := http.ReadResponse(answers, nil)
		require.NoError(t, err)
		body, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		require.NoError(t, resp.Body.Close())
		require.Equal(t, "hello", string(body))
		return resp
	}, conn
}

func routeHello(s *httpserver.Server) { s.API.Get("/hello", hello) }

func TestMaxConnectionAge_ClosesOldConnection(t *testing.T) {
	t.Parallel()
	s := serve(t, httpserver.Options{MaxConnectionAge: 50 * time.Millisecond}, routeHello)
	begun := time.Now()
	ask, conn := asker(t, s)
	for !ask().Close {
		require.Less(t, time.Since(begun), enough, "it never grows old")
	}
	assert.GreaterOrEqual(t, time.Since(begun), 40*time.Millisecond, "it was not old from the start")
	_, err := conn.Read(make([]byte, 1))
	require.ErrorIs(t, err, io.EOF)
}

func TestMaxConnectionAge_ClientReconnects(t *testing.T) {
	t.Parallel()
	s := serve(t, httpserver.Options{MaxConnectionAge: 50 * time.Millisecond}, func(s *httpserver.Server) {
		s.API.Get("/from", func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.RemoteAddr) })
	})
	c := client(t)
	for reconnected := 0; reconnected < 3; {
		resp, addr := get(t, c, s.URL+"/from")
		require.Equal(t, 200, resp.StatusCode, "no request is lost by it")
		if resp.Close {
			reconnected++
			_, other := get(t, c, s.URL+"/from")
			require.NotEqual(t, addr, other)
		}
	}
}

func TestMaxConnectionAge_KeepsYoungConnection(t *testing.T) {
	t.Parallel()
	for name, age := range map[string]time.Duration{"young": time.Hour, "never old": 0} {
		t.Run(name, func(t *testing.T) {
			ask, _ := asker(t, serve(t, httpserver.Options{MaxConnectionAge: age}, routeHello))
			for range 20 {
				require.False(t, ask().Close)
			}
		})
	}
}

// A server that drains serves on, and asks its clients to connect elsewhere.
func TestServer_DrainingClosesConnections(t *testing.T) {
	t.Parallel()
	s := serve(t, httpserver.Options{}, routeHello)
	ask, conn := asker(t, s)
	assert.False(t, ask().Close)
	s.StartDraining()
	assert.True(t, ask().Close, "on a connection that was open")
	_, err := conn.Read(make([]byte, 1))
	require.ErrorIs(t, err, io.EOF)

	ask, _ = asker(t, s)
	assert.True(t, ask().Close, "on a new connection, too")
}

func TestShutdown_WaitsForRequests(t *testing.T) {
	t.Parallel()
	started, release := make(chan struct{}), make(chan struct{})
	s := serve(t, httpserver.Options{}, func(s *httpserver.Server) {
		s.API.Get("/slow", func(w http.ResponseWriter, _ *http.Request) {
			close(started)
			<-release
			_, _ = io.WriteString(w, "in the end")
		})
	})
	slow := background(client(t), s.URL+"/slow")
	<-started
	shut := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), enough)
		defer cancel()
		shut <- s.Shutdown(ctx)
	}()
	kittest.Eventually(t, func() bool {
		conn, err := net.Dial("tcp", s.Addr().String())
		if err == nil {
			_ = conn.Close() // to get it was one too many
		}
		return err != nil
	}, "no one new is let in")
	assert.Empty(t, shut, "it has not returned")
	close(release)
	assert.Equal(t, outcome{200, "in the end", nil}, <-slow)
	require.NoError(t, <-shut)
}

func TestShutdown_EndsWithItsContext(t *testing.T) {
	t.Parallel()
	started, ended := make(chan struct{}), make(chan error, 1)
	s := serve(t, httpserver.Options{}, func(s *httpserver.Server) {
		s.API.Get("/endless", func(_ http.ResponseWriter, r *http.Request) {
			close(started)
			<-r.Context().Done()
			ended <- r.Context().Err()
		})
	})
	endless := background(client(t), s.URL+"/endless")
	<-started
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	err := s.Shutdown(ctx)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.ErrorContains(t, err, "HTTP_ADDR: requests canceled")
	require.Error(t, (<-endless).err)
	require.ErrorIs(t, <-ended, context.Canceled, "the handler hears of it, long before its own time is up")
}

// tick is a stream that says what ended it.
func tick(ended chan<- error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		ticker := time.NewTicker(100 * time.Millisecond)
		defer ticker.Stop()
		for {
			select {
			case <-ticker.C:
				_, _ = io.WriteString(w, "tick\n")
				_ = http.NewResponseController(w).Flush()
			case <-r.Context().Done():
				ended <- context.Cause(r.Context())
				return
			}
		}
	}
}

func TestStreams_EndOnShutdownOnly(t *testing.T) {
	t.Parallel() // for most of its half minute it waits
	ended, slowEnded := make(chan error, 1), make(chan error, 1)
	s := serve(t, httpserver.Options{}, func(s *httpserver.Server) {
		s.Streams.Get("/stream", tick(ended))
		s.API.Get("/slow", tick(slowEnded))
	})
	slow := background(client(t), s.URL+"/slow")
	// A client without a time-out, as streams need.
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.URL+"/stream", nil)
	require.NoError(t, err)
	start := time.Now()
	resp, err := transport.RoundTrip(req)
	require.NoError(t, err)
	defer resp.Body.Close() //nolint:errcheck // read whole below
	lines := bufio.NewReader(resp.Body)
	for time.Since(start) < 31*time.Second { // writeTimeout is 30 s
		line, err := lines.ReadString('\n')
		require.NoError(t, err)
		require.Equal(t, "tick\n", line)
	}
	assert.Empty(t, ended)
	require.ErrorIs(t, <-slowEnded, context.DeadlineExceeded, "the same among the API's routes has ended")
	require.NoError(t, (<-slow).err, "in time to say so")

	ctx, cancel := context.WithTimeout(t.Context(), enough)
	defer cancel()
	require.NoError(t, s.Shutdown(ctx), "a stream does not hold the exit")
	require.ErrorIs(t, <-ended, lifecycle.ErrDraining)
	_, err = io.Copy(io.Discard, lines)
	require.NoError(t, err, "its client sees a clean end")
}

func TestStreams_EndOnDisconnect(t *testing.T) {
	t.Parallel()
	ended := make(chan error, 1)
	s := serve(t, httpserver.Options{}, func(s *httpserver.Server) { s.Streams.Get("/stream", tick(ended)) })
	conn := s.dial(t)
	_, err := io.WriteString(conn, "GET /stream HTTP/1.1\r\nHost: test\r\n\r\n")
	require.NoError(t, err)
	_, err = conn.Read(make([]byte, 1))
	require.NoError(t, err)
	require.NoError(t, conn.Close())
	require.ErrorIs(t, <-ended, context.Canceled)
}

func TestServer_ClosesSilentConnection(t *testing.T) {
	t.Parallel() // it waits for 5 s
	s := serve(t, httpserver.Options{}, nil)
	for name, says := range map[string]string{"nothing": "", "half a header": "GET / HTTP/1.1\r\nHost: t"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			start := time.Now()
			conn := s.dial(t)
			_, err := io.WriteString(conn, says)
			require.NoError(t, err)
			_, err = conn.Read(make([]byte, 1))
			require.ErrorIs(t, err, io.EOF, "the server hangs up")
			took := time.Since(start)
			assert.Greater(t, took, 3*time.Second, "for the time, and for nothing else")
			assert.Less(t, took, 14*time.Second, "before readTimeout would")
		})
	}
}

func TestListen_FailsOnPortInUse(t *testing.T) {
	t.Parallel()
	s := serve(t, httpserver.Options{}, nil)
	second := httpserver.New(httpserver.Options{
		AddrVar: "HTTP_ADDR", Addr: s.Addr().String(), Telemetry: kittest.Telemetry(t, io.Discard), Health: health.New(instance.Instance{}),
	})
	err := second.Listen()
	require.ErrorContains(t, err, "HTTP_ADDR: listen tcp "+s.Addr().String())
	require.ErrorIs(t, err, syscall.EADDRINUSE)
}

func TestServe_AfterShutdownIsNoError(t *testing.T) {
	t.Parallel()
	s := serve(t, httpserver.Options{}, nil)
	ctx, cancel := context.WithTimeout(t.Context(), enough)
	defer cancel()
	require.NoError(t, s.Shutdown(ctx))
	require.NoError(t, s.Serve(), "as when the signal comes while a service starts")
}
