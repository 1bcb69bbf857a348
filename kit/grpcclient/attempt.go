package grpcclient

import (
	"context"
	"sync/atomic"

	"google.golang.org/grpc/stats"

	"example.com/tandem/kit/call"
)

// attempt is one attempt at a call. It is told to the endpoint that it was sent
// to by its first message: that is an answer, while a stream may go on for
// hours and be cut off for reasons that are not the pod's. One that never has
// a message is told by its end.
type attempt struct {
	stream  bool
	to      *endpoint // which the picker chose
	trial   bool      // sent to an endpoint that is left out
	seen    uint64    // of the endpoint's answers, when it was sent
	sent    bool      // or the connection broke before
	settled atomic.Bool
}

// send notes where an attempt goes. gRPC picks again if a connection has just gone.
func (a *attempt) send(to *endpoint, trial bool) {
	a.wait(-1)
	a.to, a.trial, a.seen = to, trial, to.answers.Load()
	a.wait(+1)
}

// wait counts an attempt among those that wait. A stream may have nothing to
// say for long, and that is no sign of load.
func (a *attempt) wait(by int32) {
	if a.to != nil && !a.stream {
		a.to.waiting.Add(by)
	}
}

type attemptKey struct{}

// attempts follows attempts through gRPC's events, and counts them: gRPC tags
// the context anew for each. (A picker's own DoneInfo tells only how one ended.)
type attempts struct{}

func (attempts) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context {
	call.RecordOf(ctx).Attempts++
	return context.WithValue(ctx, attemptKey{}, &attempt{})
}

func (attempts) HandleRPC(ctx context.Context, event stats.RPCStats) {
	a := attemptOf(ctx)
	if a == nil {
		return
	}
	switch event := event.(type) {
	case *stats.Begin:
		a.stream = event.IsClientStream || event.IsServerStream
	case *stats.OutHeader:
		a.sent = true
	case *stats.InPayload:
		a.settle(answered)
	case *stats.End:
		a.settle(outcomeOf(event.Error, event.EndTime.Sub(event.BeginTime)))
	}
}

func (attempts) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }
func (attempts) HandleConn(context.Context, stats.ConnStats)                       {}

// attemptOf is the attempt that ctx belongs to, or nil.
func attemptOf(ctx context.Context) *attempt {
	a, _ := ctx.Value(attemptKey{}).(*attempt)
	return a
}

// settle tells the endpoint, once.
func (a *attempt) settle(o outcome) {
	if a.to == nil || a.settled.Swap(true) {
		return
	}
	a.wait(-1)
	if a.sent {
		a.to.note(a, o)
	}
}
