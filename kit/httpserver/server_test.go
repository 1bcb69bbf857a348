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

// oneConnection opens a connection, and returns a function that gets /hello on it.
// net/http's client would sometimes open another connection on a busy machine.
func oneConnection(t *testing.T, s *served) (getHello func() *http.Response, conn net.Conn) {
	t.Helper()
	conn = s.dial(t)
	responses := bufio.NewReader(conn)
	return func() *http.Response {
		_, err := io.WriteString(conn, "GET /hello HTTP/1.1\r\nHost: test\r\n\r\n")
		require.NoError(t, err)
		resp, err := http.ReadResponse(responses, nil)
		require.NoError(t, err)
		body, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		require.NoError(t, resp.Body.Close())
		require.Equal(t, "hello", string(body))
		return resp
	}, conn
}

func routeHello(s *httpserver.Server) { s.API.Get("/hello", hello) }

// A connection older than MaxConnectionAge is closed after its next response.
func TestMaxConnectionAge_ClosesOldConnection(t *testing.T) {
	t.Parallel()
	s := serve(t, httpserver.Options{MaxConnectionAge: 50 * time.Millisecond}, routeHello)
	begin := time.Now()
	getHello, conn := oneConnection(t, s)
	for !getHello().Close {
		require.Less(t, time.Since(begin), testTimeout, "the connection is still open")
	}
	assert.GreaterOrEqual(t, time.Since(begin), 40*time.Millisecond, "the age of the connection when it closed")
	_, err := conn.Read(make([]byte, 1))
	require.ErrorIs(t, err, io.EOF)
}

// A client reconnects when its connection is too old, and no request fails.
func TestMaxConnectionAge_ClientReconnects(t *testing.T) {
	t.Parallel()
	s := serve(t, httpserver.Options{MaxConnectionAge: 50 * time.Millisecond}, func(s *httpserver.Server) {
		s.API.Get("/from", func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.RemoteAddr) })
	})
	c := client(t)
	for reconnected := 0; reconnected < 3; {
		resp, addr := get(t, c, s.URL+"/from")
		require.Equal(t, 200, resp.StatusCode, "no request fails")
		if resp.Close {
			reconnected++
			_, other := get(t, c, s.URL+"/from")
			require.NotEqual(t, addr, other)
		}
	}
}

// A connection stays open until MaxConnectionAge, and without limit if that is 0.
func TestMaxConnectionAge_KeepsYoungConnection(t *testing.T) {
	t.Parallel()
	for name, age := range map[string]time.Duration{"an hour": time.Hour, "no limit": 0} {
		t.Run(name, func(t *testing.T) {
			getHello, _ := oneConnection(t, serve(t, httpserver.Options{MaxConnectionAge: age}, routeHello))
			for range 20 {
				require.False(t, getHello().Close)
			}
		})
	}
}

// A server that drains still serves, and closes each connection after its next response.
func TestServer_DrainingClosesConnections(t *testing.T) {
	t.Parallel()
	s := serve(t, httpserver.Options{}, routeHello)
	getHello, conn := oneConnection(t, s)
	assert.False(t, getHello().Close)
	s.StartDraining()
	assert.True(t, getHello().Close, "on an open connection")
	_, err := conn.Read(make([]byte, 1))
	require.ErrorIs(t, err, io.EOF)

	getHello, _ = oneConnection(t, s)
	assert.True(t, getHello().Close, "on a new connection")
}

// Shutdown closes the port, and returns when the requests in flight have ended. Their
// clients get their responses.
func TestShutdown_WaitsForRequests(t *testing.T) {
	t.Parallel()
	started, release := make(chan struct{}), make(chan struct{})
	s := serve(t, httpserver.Options{}, func(s *httpserver.Server) {
		s.API.Get("/slow", func(w http.ResponseWriter, _ *http.Request) {
			close(started)
			<-release
			_, _ = io.WriteString(w, "served")
		})
	})
	slow := background(client(t), s.URL+"/slow")
	<-started
	done := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
		defer cancel()
		done <- s.Shutdown(ctx)
	}()
	kittest.Eventually(t, func() bool {
		conn, err := net.Dial("tcp", s.Addr().String())
		if err == nil {
			_ = conn.Close()
		}
		return err != nil
	}, "Shutdown closes the port")
	assert.Empty(t, done, "Shutdown has not returned")
	close(release)
	assert.Equal(t, outcome{200, "served", nil}, <-slow)
	require.NoError(t, <-done)
}

// When the context of Shutdown ends, Shutdown closes the connections of requests in
// flight, which ends their handlers' contexts.
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
	require.ErrorIs(t, <-ended, context.Canceled, "the handler's context ends before its own time limit")
}

// tick is a stream that sends its context's cause to ended.
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

// A stream has no time limit and ends on Shutdown, with the cause ErrDraining. A handler
// in API ends at its time limit.
func TestStreams_EndOnShutdownOnly(t *testing.T) {
	t.Parallel() // takes 31 s
	ended, slowEnded := make(chan error, 1), make(chan error, 1)
	s := serve(t, httpserver.Options{}, func(s *httpserver.Server) {
		s.Streams.Get("/stream", tick(ended))
		s.API.Get("/slow", tick(slowEnded))
	})
	slow := background(client(t), s.URL+"/slow")
	transport := &http.Transport{} // has no timeout
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
	require.ErrorIs(t, <-slowEnded, context.DeadlineExceeded, "the handler in API has ended")
	require.NoError(t, (<-slow).err, "its response was complete")

	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	defer cancel()
	require.NoError(t, s.Shutdown(ctx), "Shutdown ends the stream")
	require.ErrorIs(t, <-ended, lifecycle.ErrDraining)
	_, err = io.Copy(io.Discard, lines)
	require.NoError(t, err, "the response ends without an error")
}

// A client that disconnects ends its stream's context.
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

// A response to HEAD has no body, so a client may send its next request at once. The stream
// ends, and does not keep the connection.
func TestStreams_HeadEndsAtOnce(t *testing.T) {
	t.Parallel()
	ended := make(chan error, 2)
	s := serve(t, httpserver.Options{}, func(s *httpserver.Server) {
		s.Streams.Get("/stream", tick(ended))
		s.ControlStreams.Get("/control", tick(ended))
		s.API.Get("/hello", hello)
	})
	for _, path := range []string{"/stream", "/control"} {
		conn := s.dial(t)
		_, err := io.WriteString(conn, "HEAD "+path+" HTTP/1.1\r\nHost: test\r\n\r\nGET /hello HTTP/1.1\r\nHost: test\r\n\r\n")
		require.NoError(t, err)
		responses := bufio.NewReader(conn)
		for _, method := range []string{http.MethodHead, http.MethodGet} {
			resp, err := http.ReadResponse(responses, &http.Request{Method: method})
			require.NoError(t, err, "%s %s", method, path)
			assert.Equal(t, http.StatusOK, resp.StatusCode)
			require.NoError(t, resp.Body.Close())
		}
		require.ErrorIs(t, <-ended, context.Canceled)
	}
}

// A connection is closed if no request header arrives within readHeaderTimeout.
func TestServer_ClosesSilentConnection(t *testing.T) {
	t.Parallel() // takes 5 s
	s := serve(t, httpserver.Options{}, nil)
	for name, sent := range map[string]string{"nothing": "", "half a header": "GET / HTTP/1.1\r\nHost: t"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			start := time.Now()
			conn := s.dial(t)
			_, err := io.WriteString(conn, sent)
			require.NoError(t, err)
			_, err = conn.Read(make([]byte, 1))
			require.ErrorIs(t, err, io.EOF, "the server closes the connection")
			took := time.Since(start)
			assert.Greater(t, took, 3*time.Second, "not before readHeaderTimeout")
			assert.Less(t, took, 14*time.Second, "not only at readTimeout")
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
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	defer cancel()
	require.NoError(t, s.Shutdown(ctx))
	require.NoError(t, s.Serve(), "SIGTERM may arrive while a service starts")
}
