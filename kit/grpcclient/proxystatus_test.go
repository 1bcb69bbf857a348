package grpcclient_test

import (
	"context"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"example.com/tandem/kit/call"
	"example.com/tandem/kit/grpcclient"
	"example.com/tandem/kit/internal/echo"
	"example.com/tandem/kit/kittest"
)

// A proxy that denies the caller denies its health watch, too. The class of the call is
// denied, and the call is not retried.
func TestProxy_DeniedHealthWatch(t *testing.T) {
	hosts, port := kittest.Loopbacks(t, 2), kittest.FreePort()
	deny := func(any, grpc.ServerStream) error { return status.Error(codes.PermissionDenied, "RBAC: access denied") }
	for _, host := range hosts {
		serve(t, join(host, port), grpc.UnknownServiceHandler(deny))
	}
	const name = "denied.test"
	names.Set(name, hosts...)
	conn := newClient(t, "dns:///"+join(name, port), grpcclient.Options{Timeout: 2 * time.Second})
	kittest.Eventually(t, func() bool {
		r := say(t.Context(), conn)
		require.Error(t, r.err)
		t.Logf("class %s after %d attempts: %v", r.class, r.Attempts, r.err)
		return r.class == call.Denied && status.Code(r.err) == codes.PermissionDenied && r.Attempts == 1
	}, "the class is denied")
}

// The same texts from the server itself keep its code.
func TestProxy_ServersTextIsNoProxy(t *testing.T) {
	const text = "received health check RPC error: rpc error: code = PermissionDenied desc = of a database"
	addr := serve(t, "127.0.0.1:0", grpc.UnknownServiceHandler(func(any, grpc.ServerStream) error {
		return status.Error(codes.Unavailable, text)
	}))
	conn := newClient(t, "dns:///"+addr, grpcclient.Options{Timeout: 10 * time.Second})
	r := say(t.Context(), conn)
	assert.Equal(t, call.Unavailable, r.class, "%v", r.err)
	assert.Equal(t, 3, r.Attempts)
}

// serve runs a server of gRPC without health checks, and returns its address.
func serve(t *testing.T, addr string, options ...grpc.ServerOption) string {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	require.NoError(t, err)
	s := grpc.NewServer(options...)
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	t.Cleanup(func() {
		s.Stop()
		assert.NoError(t, <-served)
	})
	return l.Addr().String()
}

// A proxy whose connection to the server breaks after the response has begun resets the
// stream with INTERNAL_ERROR. That is a broken connection, not an error of the server:
// the class is unavailable, and an idempotent call is retried.
func TestProxy_ResetIsUnavailable(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	server := http.Server{Protocols: new(http.Protocols), Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/grpc")
		w.WriteHeader(http.StatusOK)
		_ = http.NewResponseController(w).Flush() // the client may have gone
		panic(http.ErrAbortHandler)
	})}
	server.Protocols.SetUnencryptedHTTP2(true)
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	t.Cleanup(func() {
		assert.NoError(t, server.Close())
		assert.ErrorIs(t, <-served, http.ErrServerClosed)
	})
	conn := newClient(t, "dns:///"+l.Addr().String(), grpcclient.Options{Timeout: 10 * time.Second})

	r := say(t.Context(), conn)
	assert.Equal(t, call.Unavailable, r.class, "%v", r.err)
	assert.Equal(t, codes.Unavailable, status.Code(r.err))
	assert.Equal(t, 3, r.Attempts)

	ctx, cancel := context.WithTimeout(t.Context(), aWhile)
	defer cancel()
	stream, err := echo.Open(ctx, conn)
	require.NoError(t, err)
	_, err = stream.Recv()
	assert.Equal(t, call.Unavailable, call.ClassOf(err), "%v", err)
}
