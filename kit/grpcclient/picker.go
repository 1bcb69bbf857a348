package grpcclient

import (
	"context"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/balancer"
	"google.golang.org/grpc/balancer/endpointsharding"

	"example.com/tandem/kit/internal/endpoint"
)

// attempt is one attempt of a call. An interceptor creates it and passes it to
// the picker in the context of the attempt.
type attempt struct {
	n        int // from 1; 0 for a stream
	stream   bool
	avoid    string           // address of the previous attempt; empty for the first
	picked   endpoint.Attempt // the chosen endpoint, set by the picker
	start    time.Time        // when the endpoint was chosen
	reported atomic.Bool      // the endpoint has been given the outcome
}

// picker chooses the endpoint of each attempt. UpdateState in balancer.go
// creates it.
type picker struct {
	endpoints *endpoint.Set[endpointsharding.ChildState]
}

// Pick is called by gRPC for each attempt. It chooses an endpoint, and has gRPC
// call done when the attempt has ended.
func (p picker) Pick(info balancer.PickInfo) (balancer.PickResult, error) {
	a := attemptOf(info.Ctx)
	child, picked, ok := p.endpoints.Pick(a.avoid, a.stream)
	if !ok { // every endpoint that is not ejected is reconnecting: gRPC waits for the next picker
		return balancer.PickResult{}, balancer.ErrNoSubConnAvailable
	}
	result, err := child.State.Picker.Pick(info)
	if err != nil {
		picked.End(endpoint.Ignored)
		return result, err
	}
	a.begin(picked)
	result.Done = a.done // the child's own policy, pick_first, sets no Done
	return result, nil
}

func attemptOf(ctx context.Context) *attempt {
	if a, ok := ctx.Value(attemptKey{}).(*attempt); ok {
		return a
	}
	return &attempt{stream: true} // the call did not pass our interceptors
}

// begin records the chosen endpoint. If the connection is lost before anything
// was sent, gRPC calls done and then Pick again, within the same attempt.
func (a *attempt) begin(picked endpoint.Attempt) {
	a.picked, a.start = picked, time.Now()
	a.reported.Store(false)
}

func (a *attempt) done(info balancer.DoneInfo) {
	if !info.BytesSent {
		a.report(endpoint.Ignored)
		return
	}
	a.report(outcomeOf(info.Err, time.Since(a.start)))
}

// report passes the first outcome on to the endpoint and ignores later ones. A
// stream reports its first message: it may run for hours, and end for reasons
// that have nothing to do with the endpoint.
func (a *attempt) report(o endpoint.Outcome) {
	if !a.reported.Swap(true) {
		a.picked.End(o)
	}
}
