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
	"google.golang.org/grpc/status"

	"example.com/tandem/kit/grpcserver"
	"example.com/tandem/kit/internal/echo"
	"example.com/tandem/kit/lifecycle"
)

// dial makes a client that sets nothing.
func dial(t *testing.T, s *server) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("dns:///"+s.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, conn.Close()) })
	return conn
}

// shutdown calls Shutdown with a limit.
func (s *server) shutdown(limit time.Duration) <-chan error {
	done := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		defer cancel()
		done <- s.Shutdown(ctx)
	}()
	return done
}

func TestShutdown_WaitsForCalls(t *testing.T) {
	g := newGate(t)
	s := start(t, grpcserver.Options{}, echo.Echo{Say: func(context.Context, string) (string, error) {
		g.pass()
		return "served", nil
	}})
	type answer struct {
		text string
		err  error
	}
	answered := make(chan answer, 1)
	go func() {
		text, err := s.say(t.Context())
		answered <- answer{text, err}
	}()
	<-g.began
	down := s.shutdown(time.Minute)

	require.Eventually(t, func() bool { // the port is closed, so Shutdown is under way
		conn, err := net.Dial("tcp", s.Addr().String())
		if err == nil {
			_ = conn.Close()
		}
		return err != nil
	}, aWhile, 10*time.Millisecond)
	select {
	case err := <-down:
		require.Fail(t, "it does not wait", "%v", err)
	case err := <-s.served:
		require.Fail(t, "Serve returns before Shutdown", "%v", err)
	case <-time.After(100 * time.Millisecond):
	}

	g.open()
	require.NoError(t, within(t, down, "Shutdown is held"))
	require.NoError(t, within(t, s.served, "Serve is held"))
	assert.Equal(t, answer{"served", nil}, <-answered)
}

func TestShutdown_EndsStreams(t *testing.T) {
	cause := make(chan error, 1)
	s := start(t, grpcserver.Options{}, echo.Echo{Watch: func(ss grpc.ServerStream) error {
		if err := echo.Send(ss, "begun"); err != nil {
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

	down := s.shutdown(time.Minute) // the client's own watch of health is such a stream too
	_, err = stream.Recv()
	assert.Equal(t, codes.Unavailable, status.Code(err))
	require.ErrorContains(t, err, lifecycle.ErrDraining.Error())
	require.NoError(t, within(t, down, "Shutdown is held"))
	require.ErrorIs(t, <-cause, lifecycle.ErrDraining)
}

func TestShutdown_EndsWithItsContext(t *testing.T) {
	g := newGate(t)
	ended := make(chan struct{})
	for name, tt := range map[string]struct {
		say  func(context.Context, string) (string, error)
		then func()
	}{
		"a handler that minds its context": {
			func(ctx context.Context, _ string) (string, error) {
				g.began <- struct{}{}
				<-ctx.Done()
				close(ended)
				return "", ctx.Err()
			},
			func() { within(t, ended, "the handler goes on") },
		},
		"a handler that does not": {
			func(context.Context, string) (string, error) {
				g.pass()
				return "", nil
			},
			g.open,
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := start(t, grpcserver.Options{}, echo.Echo{Say: tt.say})
			answered := make(chan error, 1)
			go func() {
				_, err := s.say(t.Context())
				answered <- err
			}()
			<-g.began
			err := within(t, s.shutdown(100*time.Millisecond), "Shutdown is held")
			require.ErrorIs(t, err, context.DeadlineExceeded)
			require.ErrorContains(t, err, "GRPC_ADDR: ")
			assert.Equal(t, codes.Unavailable, status.Code(<-answered))
			require.NoError(t, within(t, s.served, "Serve is held"))
			tt.then()
		})
	}
}
