package grpcclient_test

import (
	"context"
	"errors"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"example.com/tandem/kit/call"
	"example.com/tandem/kit/grpcclient"
	"example.com/tandem/kit/internal/echo"
	"example.com/tandem/kit/kittest"
)

// proxy forwards each call, health checks too, to the next of its backends, like a
// sidecar of a mesh. It skips backends that it cannot connect to.
type proxy struct {
	addr string
	turn atomic.Uint64

	mu       sync.Mutex
	backends []*grpc.ClientConn
}

// startProxy starts a proxy. Call it before newClient, so that the proxy stops after
// the client.
func startProxy(t *testing.T, backends ...string) *proxy {
	t.Helper()
	p := &proxy{}
	for _, addr := range backends {
		conn, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
		require.NoError(t, err)
		t.Cleanup(func() { assert.NoError(t, conn.Close()) })
		p.backends = append(p.backends, conn)
	}
	p.addr = serve(t, "127.0.0.1:0", grpc.UnknownServiceHandler(p.forward), grpc.ForceServerCodec(frame{}))
	return p
}

// remove takes a backend out, as the control plane of a mesh does when a pod shuts down.
func (p *proxy) remove(backend int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.backends = slices.Delete(slices.Clone(p.backends), backend, backend+1)
}

func (p *proxy) next() *grpc.ClientConn {
	p.mu.Lock()
	defer p.mu.Unlock()
	var backend *grpc.ClientConn
	for range p.backends {
		backend = p.backends[(p.turn.Add(1)-1)%uint64(len(p.backends))]
		if backend.GetState() != connectivity.TransientFailure {
			break
		}
	}
	return backend
}

// forward forwards a call that has one request message.
func (p *proxy) forward(_ any, down grpc.ServerStream) error {
	method, _ := grpc.MethodFromServerStream(down)
	var message []byte
	if err := down.RecvMsg(&message); err != nil {
		return err
	}
	up, err := p.next().NewStream(down.Context(), &grpc.StreamDesc{ServerStreams: true}, method, grpc.ForceCodec(frame{}))
	if err != nil {
		return err
	}
	if err := errors.Join(up.SendMsg(&message), up.CloseSend()); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	for {
		if err := up.RecvMsg(&message); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if err := down.SendMsg(&message); err != nil {
			return err
		}
	}
}

// frame is a codec that passes messages on as they are.
type frame struct{}

func (frame) Name() string                  { return "proto" }
func (frame) Marshal(v any) ([]byte, error) { return *v.(*[]byte), nil }
func (frame) Unmarshal(data []byte, v any) error {
	*v.(*[]byte) = slices.Clone(data)
	return nil
}

// Behind a proxy that balances calls, a backend that drains and one that is killed fail
// no call: the health of one backend says nothing about the others.
func TestProxy_LosesNoCall(t *testing.T) {
	service := echo.Echo{Say: func(_ context.Context, text string) (string, error) {
		time.Sleep(5 * time.Millisecond)
		return text, nil
	}}
	var backends []pod
	var addrs []string
	for range 3 {
		backends = append(backends, start(t, "127.0.0.1:0", 0, service))
		addrs = append(addrs, backends[len(backends)-1].Addr().String())
	}
	p := startProxy(t, addrs...)
	conn := newClient(t, "dns:///"+p.addr, grpcclient.Options{})
	require.NoError(t, say(t.Context(), conn).err) // a health watch would be the proxy's first call, at the first backend

	var calls, lost atomic.Int64
	defer keepCalling(t.Context(), conn, func(err error) {
		if err != nil && lost.Add(1) == 1 {
			t.Log("the first lost call:", err)
		}
		calls.Add(1)
	})()
	moreCalls := func() {
		t.Helper()
		until := calls.Load() + 1000
		kittest.Eventually(t, func() bool { return calls.Load() >= until }, "calls continue")
	}

	moreCalls()
	backends[0].health.Drain()
	moreCalls()
	p.remove(0)
	assert.NoError(t, backends[0].Shutdown(t.Context()))
	moreCalls()
	backends[1].stop()
	moreCalls()
	assert.Zero(t, lost.Load(), "of %d calls", calls.Load())
}

// While every backend of a proxy responds UNAVAILABLE, 1,000 calls make at most 1,100
// attempts.
func TestProxy_OutageLimitsRetries(t *testing.T) {
	const calls = 1000
	service, served := failing(calls*10, codes.Unavailable)
	var addrs []string
	for range 3 {
		addrs = append(addrs, start(t, "127.0.0.1:0", 0, service).Addr().String())
	}
	conn := newClient(t, "dns:///"+startProxy(t, addrs...).addr, grpcclient.Options{})
	for range calls {
		r := say(t.Context(), conn)
		require.Equal(t, call.Unavailable, r.class, "%v", r.err)
		require.Equal(t, codes.Unavailable, status.Code(r.err))
	}
	assert.LessOrEqual(t, served.Load(), int64(calls*11/10))
	assert.Greater(t, served.Load(), int64(calls), "calls are retried until the budget is spent")
}
