package grpcclient

import (
	"context"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/balancer"

	"example.com/tandem/kit/internal/endpoint"
)

// attempt is one attempt of a call. The interceptor makes it, the picker finds
// it in the context and chooses its endpoint.
type attempt struct {
	stream  bool
	avoid   string // the address of the attempt before
	picked  endpoint.Attempt
	start   time.Time
	settled atomic.Bool
}

type attemptKey struct{}

func withAttempt(ctx context.Context, a *attempt) context.Context {
	return context.WithValue(ctx, attemptKey{}, a)
}

func attemptOf(ctx context.Context) *attempt {
	if a, ok := ctx.Value(attemptKey{}).(*attempt); ok {
		return a
	}
	return &attempt{stream: true} // not made by our interceptors: nobody looks at it
}

// begin notes the endpoint that was picked. gRPC picks again if a connection is
// lost before anything was sent, and has called done before.
func (a *attempt) begin(picked endpoint.Attempt) {
	a.picked, a.start = picked, time.Now()
	a.settled.Store(false)
}

// done is called by gRPC when the attempt ends.
func (a *attempt) done(info balancer.DoneInfo) {
	if !info.BytesSent {
		a.settle(endpoint.Ignored)
		return
	}
	a.settle(outcomeOf(info.Err, time.Since(a.start)))
}

// settle tells the endpoint the outcome once. The outcome of a stream is known
// with its first message; it may go on for hours, and end for other reasons.
func (a *attempt) settle(o endpoint.Outcome) {
	if !a.settled.Swap(true) {
		a.picked.End(o)
	}
}
