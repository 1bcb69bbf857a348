package backend

import (
	"context"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"example.com/tandem/kit/call"
	"example.com/tandem/kit/grpcclient"
	"example.com/tandem/kit/kittest"
	datav1 "example.com/tandem/proto/data/v1"
)

// fakeB is a service-b whose stream does what the test wants. It counts streams.
type fakeB struct {
	datav1.UnimplementedDataServiceServer
	get     func(context.Context) (*datav1.GetDataResponse, error)
	watch   func(n int64, out grpc.ServerStreamingServer[datav1.WatchDataResponse]) error
	streams atomic.Int64
}

func (b *fakeB) GetData(ctx context.Context, _ *datav1.GetDataRequest) (*datav1.GetDataResponse, error) {
	return b.get(ctx)
}

func (b *fakeB) WatchData(_ *datav1.WatchDataRequest, out grpc.ServerStreamingServer[datav1.WatchDataResponse]) error {
	return b.watch(b.streams.Add(1), out)
}

// call starts the service, and returns a backend that calls it.
func (b *fakeB) call(t *testing.T, silence time.Duration) *GRPC {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	server := grpc.NewServer()
	grpc_health_v1.RegisterHealthServer(server, health.NewServer())
	datav1.RegisterDataServiceServer(server, b)
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	t.Cleanup(func() {
		server.Stop()
		assert.NoError(t, <-done)
	})
	return newGRPC(t, "dns:///"+l.Addr().String(), silence)
}

func newGRPC(t *testing.T, target string, silence time.Duration) *GRPC {
	t.Helper()
	conn, err := grpcclient.New(target, grpcclient.Options{Timeout: 2 * time.Second, Telemetry: kittest.Telemetry(t, io.Discard)})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, conn.Close()) })
	return NewGRPC(conn, silence)
}

func send(out grpc.ServerStreamingServer[datav1.WatchDataResponse]) error {
	return out.Send(&datav1.WatchDataResponse{Sequence: 1})
}

// watchFor reads a stream for a while, and returns its messages and errors.
func watchFor(t *testing.T, g *GRPC, d time.Duration) (messages int, errs []error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	for _, err := range g.Watch(ctx, "", datav1.MinInterval) {
		if err != nil {
			errs = append(errs, err)
		} else {
			messages++
		}
	}
	return messages, errs
}

// A stream that breaks after its first message is opened again after a pause
// that grows, as is one that never had a message.
func TestWatch_BacksOff(t *testing.T) {
	for name, first := range map[string]bool{"after the first message": true, "before it": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := &fakeB{watch: func(_ int64, out grpc.ServerStreamingServer[datav1.WatchDataResponse]) error {
				if first {
					if err := send(out); err != nil {
						return err
					}
				}
				return status.Error(codes.Unavailable, "broken")
			}}
			watchFor(t, b.call(t, time.Second), 3*time.Second)
			assert.Greater(t, b.streams.Load(), int64(1), "it is opened again")
			assert.Less(t, b.streams.Load(), int64(30), "with pauses up to 0.25, 0.5, 1 and 2 s")
		})
	}
}

// An error that no retry can mend ends the stream, with its class.
func TestWatch_EndsOnFinalErrors(t *testing.T) {
	for code, invalid := range map[codes.Code]bool{codes.InvalidArgument: true, codes.Unimplemented: false, codes.PermissionDenied: false} {
		t.Run(code.String(), func(t *testing.T) {
			t.Parallel()
			b := &fakeB{watch: func(int64, grpc.ServerStreamingServer[datav1.WatchDataResponse]) error {
				return status.Error(code, "key is too long")
			}}
			_, errs := watchFor(t, b.call(t, time.Second), 20*time.Second)
			require.Len(t, errs, 1)
			assert.EqualValues(t, 1, b.streams.Load())
			var refused *InvalidError
			if invalid {
				require.ErrorAs(t, errs[0], &refused)
				assert.Equal(t, "key is too long", refused.Detail, "the server's words, without gRPC's around them")
			} else {
				assert.Equal(t, call.Other, call.ClassOf(errs[0]))
			}
		})
	}
}

// A stream whose service-b falls silent has class timeout; where DNS does not
// respond, dns.
func TestWatch_ClassifiesSilence(t *testing.T) {
	t.Parallel()
	b := &fakeB{watch: func(_ int64, out grpc.ServerStreamingServer[datav1.WatchDataResponse]) error {
		<-out.Context().Done()
		return nil
	}}
	_, errs := watchFor(t, b.call(t, 200*time.Millisecond), 2*time.Second)
	require.NotEmpty(t, errs)
	assert.Equal(t, call.Timeout, call.ClassOf(errs[0]), "%v", errs[0])

	g := newGRPC(t, "dns:///nobody.invalid:9090", 200*time.Millisecond)
	_, errs = watchFor(t, g, 2*time.Second)
	require.NotEmpty(t, errs)
	assert.Equal(t, call.DNS, call.ClassOf(errs[0]), "%v", errs[0])
}

// A slow reader is not taken for a silent service-b.
func TestWatch_WaitsForSlowReader(t *testing.T) {
	t.Parallel()
	b := &fakeB{watch: func(_ int64, out grpc.ServerStreamingServer[datav1.WatchDataResponse]) error {
		for range 3 {
			if err := send(out); err != nil {
				return err
			}
		}
		<-out.Context().Done()
		return nil
	}}
	g := b.call(t, 100*time.Millisecond)
	messages := 0
	for _, err := range g.Watch(t.Context(), "", datav1.MinInterval) {
		require.NoError(t, err)
		if messages++; messages == 3 {
			break
		}
		time.Sleep(time.Second) // longer than service-b may be silent
	}
	assert.EqualValues(t, 1, b.streams.Load(), "one stream served all")
}

// The detail of a refused request is the server's message alone.
func TestGet_RefusalIsServersMessage(t *testing.T) {
	t.Parallel()
	b := &fakeB{get: func(context.Context) (*datav1.GetDataResponse, error) {
		return nil, status.Error(codes.InvalidArgument, "key is too long")
	}}
	_, _, err := b.call(t, time.Second).Get(t.Context(), "k")
	var refused *InvalidError
	require.ErrorAs(t, err, &refused)
	assert.Equal(t, "key is too long", refused.Detail)
}
