package grpcclient

import (
	"context"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/peer"

	"example.com/tandem/kit/call"
	"example.com/tandem/kit/identity"
	"example.com/tandem/kit/retry"
)

// interceptors run once for each call. The interceptors after them in the chain
// run once for each attempt.
type interceptors struct {
	timeout time.Duration
	token   *identity.Source
	host    string // of the target, as metric label "peer"
	conn    *connState
	budget  *retry.Budget
	calls   call.Counter
}

// unary makes a unary call. Each attempt goes through gRPC to picker.Pick, which
// chooses the endpoint, and gRPC sets server to the address that it connected to.
func (i *interceptors) unary(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) (err error) {
	deadline := retry.Deadline(ctx, i.timeout)
	record := call.RecordOf(ctx)
	if opts, err = i.authorize(ctx, deadline, opts); err != nil {
		return err
	}
	var server peer.Peer
	opts = append(opts, grpc.Peer(&server))
	avoid, n := "", 0
	retry.Do(ctx, deadline, idempotent(method), i.budget, func(ctx context.Context, _ bool) retry.Result {
		n++
		a, start := &attempt{n: n, avoid: avoid}, time.Now()
		server = peer.Peer{} // gRPC does not reset it if the attempt reaches no server
		err = invoke(withAttempt(ctx, a), method, req, reply, cc, opts...)
		err = fromProxy(err, server.Addr != nil)
		avoid = a.picked.Addr()
		result := i.conn.resultOf(err, server.Addr != nil, a.picked.Alone())
		err = i.conn.classify(err, server.Addr != nil)
		record.Peer = ""
		if server.Addr != nil {
			record.Peer = server.Addr.String()
		}
		record.Tried(record.Peer, time.Since(start), call.ClassOf(err), err)
		return result
	})

	i.calls.Add(i.host, "grpc", call.ClassOf(err))
	record.Addresses, _ = i.conn.name.Known()
	record.BalancedBy = call.BalancerOf(record.Addresses)
	return err
}

type attemptKey struct{}

// withAttempt passes an attempt to picker.Pick.
func withAttempt(ctx context.Context, a *attempt) context.Context {
	return context.WithValue(ctx, attemptKey{}, a)
}
