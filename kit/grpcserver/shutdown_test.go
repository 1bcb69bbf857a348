package grpcserver_test

import (
	"context"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"example.com/tandem/kit/grpcserver"
	"example.com/tandem/kit/internal/echo"
	"example.com/tandem/kit/kittest"
	"example.com/tandem/kit/lifecycle"
)

// dial returns a client of plain grpc-go, without retries or a default deadline.
func dial(t *testing.T, s *server) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("dns:///"+s.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, conn.Close()) })
	return conn
}

// shutdown calls Shutdown with a time limit. The channel receives its result.
func (s *server) shutdown(limit time.Duration) <-chan error {
	done := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		defer cancel()
		done <- s.Shutdown(ctx)
	}()
	return done
}

// Shutdown closes the port, and returns when the calls in flight have ended. Their
// callers get their responses.
func TestShutdown_WaitsForCalls(t *testing.T) {
	g := newGate(t)
	s := start(t, grpcserver.Options{}, echo.Echo{Say: func(context.Context, string) (string, error) {
		g.pass()
		return "served", nil
	}})
	type response struct {
		text string
		err  error
	}
	responses := make(chan response, 1)
	go func() {
		text, err := s.say(t.Context())
		responses <- response{text, err}
	}()
	<-g.started
	done := s.shutdown(time.Minute)

	kittest.Eventually(t, func() bool {
		conn, err := net.Dial("tcp", s.Addr().String())
		if err == nil {
			_ = conn.Close()
		}
		return err != nil
	}, "Shutdown closes the port")
	select {
	case err := <-done:
		require.Fail(t, "Shutdown returned before the call ended", "%v", err)
	case err := <-s.served:
		require.Fail(t, "Serve returned before Shutdown", "%v", err)
	case <-time.After(100 * time.Millisecond):
	}

	g.open()
	require.NoError(t, receive(t, done, "Shutdown has not returned"))
	require.NoError(t, receive(t, s.served, "Serve has not returned"))
	assert.Equal(t, response{"served", nil}, <-responses)
}

// Shutdown ends streams that have no end of their own. The handler's context has the
// cause ErrDraining, and the client gets UNAVAILABLE.
func TestShutdown_EndsStreams(t *testing.T) {
	cause := make(chan error, 1)
	s := start(t, grpcserver.Options{}, echo.Echo{Watch: func(ss grpc.ServerStream) error {
		if err := echo.Send(ss, "first"); err != nil {
			return err
		}
		<-ss.Context().Done()
		cause <- context.Cause(ss.Context())
		return nil
	}})
	stream, err := echo.Open(t.Context(), s.conn)
	require.NoError(t, err)
	_, err = stream.Recv()
	require.NoError(t, err)
	watch, err := grpc_health_v1.NewHealthClient(s.conn).Watch(t.Context(), &grpc_health_v1.HealthCheckRequest{})
	require.NoError(t, err)
	_, err = watch.Recv()
	require.NoError(t, err)

	done := s.shutdown(time.Minute) // also ends the stream that watches health
	_, err = stream.Recv()
	assert.Equal(t, codes.Unavailable, status.Code(err))
	require.ErrorContains(t, err, lifecycle.ErrDraining.Error())
	require.NoError(t, receive(t, done, "Shutdown has not returned"))
	require.ErrorIs(t, <-cause, lifecycle.ErrDraining)
}

// When the context of Shutdown ends, Shutdown cancels the calls in flight and returns,
// even if a handler ignores its context.
func TestShutdown_EndsWithItsContext(t *testing.T) {
	g := newGate(t)
	ended := make(chan struct{})
	for name, tt := range map[string]struct {
		say   func(context.Context, string) (string, error)
		after func() // is called after Shutdown
	}{
		"handler ends with its context": {
			say: func(ctx context.Context, _ string) (string, error) {
				g.started <- struct{}{}
				<-ctx.Done()
				close(ended)
				return "", ctx.Err()
			},
			after: func() { receive(t, ended, "the handler's context has not ended") },
		},
		"handler ignores its context": {
			say: func(context.Context, string) (string, error) {
				g.pass()
				return "", nil
			},
			after: g.open,
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := start(t, grpcserver.Options{}, echo.Echo{Say: tt.say})
			callErr := make(chan error, 1)
			go func() {
				_, err := s.say(t.Context())
				callErr <- err
			}()
			<-g.started
			err := receive(t, s.shutdown(100*time.Millisecond), "Shutdown has not returned")
			require.ErrorIs(t, err, context.DeadlineExceeded)
			require.ErrorContains(t, err, "GRPC_ADDR: ")
			assert.Equal(t, codes.Unavailable, status.Code(<-callErr))
			require.NoError(t, receive(t, s.served, "Serve has not returned"))
			tt.after()
		})
	}
}
