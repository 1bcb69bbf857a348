package grpcclient

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"example.com/tandem/kit/call"
	"example.com/tandem/kit/internal/endpoint"
	"example.com/tandem/kit/retry"
)

// interceptors hold what runs once for each call. The interceptors after them in
// the chain run once for each attempt.
type interceptors struct {
	state   *state
	timeout time.Duration
	peer    string // host of the target, as a metric label
	calls   call.Counter
	budget  *retry.Budget
}

// unary makes one unary call.
func (i *interceptors) unary(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) (err error) {
	deadline := retry.Deadline(ctx, i.timeout)
	record := call.RecordOf(ctx)
	var p peer.Peer
	opts = append(opts, grpc.Peer(&p))
	var last *attempt
	n := 0
	retry.Do(ctx, deadline, idempotent(method), i.budget, func(ctx context.Context, _ bool) retry.Result {
		a := &attempt{}
		if last != nil {
			a.avoid = last.picked.Addr()
		}
		last = a
		n++
		p = peer.Peer{} // gRPC leaves that of the last attempt if it reaches no server
		err = invoke(withAttempt(ctx, a), method, req, reply, cc, opts...)
		return i.resultOf(err, p.Addr != nil, a.picked.Alone())
	})
	err = i.state.classify(err, p.Addr != nil)

	i.calls.Add(i.peer, "grpc", call.ClassOf(err))
	record.Attempts, record.Peer = n, ""
	if p.Addr != nil {
		record.Peer = p.Addr.String()
	}
	record.Addresses, _ = i.state.name.Known()
	return err
}

// stream opens a stream. Streams have no deadline, as they end when their
// context does, and are not retried: only their reader knows where they broke.
func (i *interceptors) stream(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	a := &attempt{stream: true}
	s, err := open(withAttempt(ctx, a), desc, cc, method, opts...)
	if err != nil {
		err = i.state.classify(withCause(ctx, err), false)
		i.calls.Add(i.peer, "grpc", call.ClassOf(err))
		return nil, err
	}
	c := &stream{ClientStream: s, ctx: ctx, attempt: a, interceptors: i, manyResponses: desc.ServerStreams}
	// A reader that leaves without reading the end cancels the context.
	c.stop = context.AfterFunc(ctx, func() {
		if errors.Is(context.Cause(ctx), context.DeadlineExceeded) {
			c.count(call.Timeout) // the reader waited in vain
		} else {
			c.count(call.Canceled)
		}
	})
	return c, nil
}

// withCause replaces CANCELED by DEADLINE_EXCEEDED if that is why the caller
// canceled a stream: it was silent for too long.
func withCause(ctx context.Context, err error) error {
	if status.Code(err) == codes.Canceled && errors.Is(context.Cause(ctx), context.DeadlineExceeded) {
		return status.Error(codes.DeadlineExceeded, status.Convert(err).Message())
	}
	return err
}

// stream is a stream that counts as one call when it ends.
type stream struct {
	grpc.ClientStream
	*interceptors
	ctx           context.Context //nolint:containedctx // the caller's, whose cause tells why it ended
	attempt       *attempt
	manyResponses bool
	once          sync.Once
	stop          func() bool
}

// RecvMsg receives the next message, or a classified error.
func (s *stream) RecvMsg(m any) error {
	err := s.ClientStream.RecvMsg(m)
	if err == nil {
		s.attempt.settle(endpoint.Responded)
		if s.manyResponses {
			return nil
		}
	}
	class := call.OK
	if err != nil && !errors.Is(err, io.EOF) {
		_, reached := peer.FromContext(s.Context())
		err = s.state.classify(withCause(s.ctx, err), reached)
		class = call.ClassOf(err)
	}
	s.stop()
	s.count(class)
	return err
}

// count counts the stream, once.
func (s *stream) count(class call.Class) {
	s.once.Do(func() { s.calls.Add(s.peer, "grpc", class) })
}
