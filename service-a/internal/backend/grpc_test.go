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

// serverStream is the server's side of a stream of WatchData.
type serverStream = grpc.ServerStreamingServer[datav1.WatchDataResponse]

// fakeB is a service-b whose methods the test provides. It counts streams.
type fakeB struct {
	datav1.UnimplementedDataServiceServer
	get     func(context.Context) (*datav1.GetDataResponse, error)
	watch   func(serverStream) error
	streams atomic.Int64
}

func (b *fakeB) GetData(ctx context.Context, _ *datav1.GetDataRequest) (*datav1.GetDataResponse, error) {
	return b.get(ctx)
}

func (b *fakeB) WatchData(_ *datav1.WatchDataRequest, stream serverStream) error {
	b.streams.Add(1)
	return b.watch(stream)
}

// start starts b, and returns a backend that calls it.
func (b *fakeB) start(t *testing.T, maxSilence time.Duration) *GRPC {
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
	return newGRPC(t, "dns:///"+l.Addr().String(), maxSilence)
}

func newGRPC(t *testing.T, target string, maxSilence time.Duration) *GRPC {
	t.Helper()
	conn, err := grpcclient.New(target, grpcclient.Options{Timeout: 2 * time.Second, Telemetry: kittest.Telemetry(t, io.Discard)})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, conn.Close()) })
	return NewGRPC(conn, nil, maxSilence)
}

func send(stream serverStream) error {
	return stream.Send(&datav1.WatchDataResponse{Sequence: 1})
}

// watchFor watches for the duration d, and returns the messages and errors.
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

// A broken stream is opened again after a growing backoff, whether or not it had
// a message.
func TestWatch_BacksOff(t *testing.T) {
	for name, sendFirst := range map[string]bool{"breaks after a message": true, "breaks before a message": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := &fakeB{watch: func(stream serverStream) error {
				if sendFirst {
					if err := send(stream); err != nil {
						return err
					}
				}
				return status.Error(codes.Unavailable, "broken")
			}}
			watchFor(t, b.start(t, time.Second), 3*time.Second)
			assert.Greater(t, b.streams.Load(), int64(1), "the stream is opened again")
			assert.Less(t, b.streams.Load(), int64(30), "the backoff is at most 0.25, 0.5, 1 and 2 s")
		})
	}
}

// Of a stream that had messages, the reader hears of a failure to open it again only when
// it has failed three times in a row.
func TestWatch_ReportsLastingFailures(t *testing.T) {
	t.Parallel()
	var b *fakeB
	b = &fakeB{watch: func(stream serverStream) error {
		if n := b.streams.Load(); n == 1 || n == 4 { // two fail between them, and all after them
			if err := send(stream); err != nil {
				return err
			}
		}
		return status.Error(codes.Unavailable, "broken")
	}}
	g := b.start(t, time.Second)
	messages, failures := 0, 0
	for _, err := range g.Watch(t.Context(), "", datav1.MinInterval) {
		if err == nil {
			messages++
			continue
		}
		assert.Equal(t, 2, messages, "messages before the first reported failure")
		assert.EqualValues(t, 6+1, b.streams.Load(), "streams until then")
		failures++
		break
	}
	assert.Equal(t, 1, failures)
}

// A permanent error ends the sequence.
func TestWatch_EndsOnFinalErrors(t *testing.T) {
	for code, class := range map[codes.Code]call.Class{
		codes.InvalidArgument: "", codes.Unimplemented: call.Other, codes.PermissionDenied: call.Denied, codes.Unauthenticated: call.Denied,
	} {
		t.Run(code.String(), func(t *testing.T) {
			t.Parallel()
			b := &fakeB{watch: func(serverStream) error {
				return status.Error(code, "key is too long")
			}}
			_, errs := watchFor(t, b.start(t, time.Second), 20*time.Second)
			require.Len(t, errs, 1)
			assert.EqualValues(t, 1, b.streams.Load())
			var invalidErr *InvalidError
			if code == codes.InvalidArgument {
				require.ErrorAs(t, errs[0], &invalidErr)
				assert.Equal(t, "key is too long", invalidErr.Detail, "the server's message, without the prefix of gRPC")
			} else {
				assert.Equal(t, class, call.ClassOf(errs[0]))
			}
		})
	}
}

// A silent stream has class timeout. If DNS has no address for the name, the class
// is dns.
func TestWatch_ClassifiesSilence(t *testing.T) {
	t.Parallel()
	b := &fakeB{watch: func(stream serverStream) error {
		<-stream.Context().Done()
		return nil
	}}
	_, errs := watchFor(t, b.start(t, 200*time.Millisecond), 2*time.Second)
	require.NotEmpty(t, errs)
	assert.Equal(t, call.Timeout, call.ClassOf(errs[0]), "%v", errs[0])

	g := newGRPC(t, "dns:///nobody.invalid:9090", 200*time.Millisecond)
	_, errs = watchFor(t, g, 2*time.Second)
	require.NotEmpty(t, errs)
	assert.Equal(t, call.DNS, call.ClassOf(errs[0]), "%v", errs[0])
}

// The time that the reader takes does not count as silence of service-b.
func TestWatch_WaitsForSlowReader(t *testing.T) {
	t.Parallel()
	b := &fakeB{watch: func(stream serverStream) error {
		for range 3 {
			if err := send(stream); err != nil {
				return err
			}
		}
		<-stream.Context().Done()
		return nil
	}}
	g := b.start(t, 100*time.Millisecond)
	messages := 0
	for _, err := range g.Watch(t.Context(), "", datav1.MinInterval) {
		require.NoError(t, err)
		if messages++; messages == 3 {
			break
		}
		time.Sleep(time.Second) // longer than the limit of 200 ms
	}
	assert.EqualValues(t, 1, b.streams.Load(), "no stream was opened again")
}

// The detail of an InvalidError is the server's message, without the prefix of gRPC.
func TestGet_ReturnsServersDetail(t *testing.T) {
	t.Parallel()
	b := &fakeB{get: func(context.Context) (*datav1.GetDataResponse, error) {
		return nil, status.Error(codes.InvalidArgument, "key is too long")
	}}
	_, _, err := b.start(t, time.Second).Get(t.Context(), "k")
	var invalidErr *InvalidError
	require.ErrorAs(t, err, &invalidErr)
	assert.Equal(t, "key is too long", invalidErr.Detail)
}
