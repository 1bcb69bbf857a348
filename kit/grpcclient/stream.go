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
)

// stream opens a stream. A stream ends with its context and has no other
// deadline. It is not retried: only its reader knows which messages it has.
func (i *interceptors) stream(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	opts, err := i.authorize(ctx, time.Now().Add(i.timeout), opts)
	if err != nil {
		return nil, err
	}
	a := &attempt{stream: true}
	s, err := open(withAttempt(ctx, a), desc, cc, method, opts...)
	if err != nil {
		err = i.conn.classify(withCause(ctx, fromProxy(err, false)), false)
		i.calls.Add(i.host, "grpc", call.ClassOf(err))
		return nil, err
	}
	c := &countedStream{ClientStream: s, interceptors: i, ctx: ctx, attempt: a, manyResponses: desc.ServerStreams}
	// A reader may cancel ctx and never call RecvMsg again.
	c.stopAfterFunc = context.AfterFunc(ctx, func() {
		c.count(call.ClassOfCode(status.Code(withCause(ctx, status.FromContextError(ctx.Err()).Err()))))
	})
	return c, nil
}

// countedStream is a stream that is counted as one call when it ends.
type countedStream struct {
	grpc.ClientStream
	*interceptors
	ctx           context.Context //nolint:containedctx // the caller's: withCause needs its cause
	attempt       *attempt
	manyResponses bool
	once          sync.Once
	stopAfterFunc func() bool
}

// RecvMsg receives the next message. Its error is io.EOF or a *call.Error.
func (s *countedStream) RecvMsg(m any) error {
	err := s.ClientStream.RecvMsg(m)
	if err == nil {
		s.attempt.report(endpoint.Responded)
		if s.manyResponses {
			return nil
		}
	}
	class := call.OK
	if err != nil && !errors.Is(err, io.EOF) {
		_, reached := peer.FromContext(s.Context())
		err = s.conn.classify(withCause(s.ctx, fromProxy(err, reached)), reached)
		class = call.ClassOf(err)
	}
	s.stopAfterFunc()
	s.count(class)
	return err
}

// count counts the stream on the first call, and does nothing on later ones.
func (s *countedStream) count(class call.Class) {
	s.once.Do(func() { s.calls.Add(s.host, "grpc", class) })
}

// withCause returns err with CANCELED replaced by DEADLINE_EXCEEDED if the cause
// of ctx is context.DeadlineExceeded. With that cause, callers cancel a stream
// that has been silent for too long.
func withCause(ctx context.Context, err error) error {
	if status.Code(err) == codes.Canceled && errors.Is(context.Cause(ctx), context.DeadlineExceeded) {
		return status.Error(codes.DeadlineExceeded, status.Convert(err).Message())
	}
	return err
}
