package grpcclient

import (
	"context"
	"errors"
	"io"

	"google.golang.org/grpc"
	"google.golang.org/grpc/peer"

	"example.com/tandem/kit/call"
)

// unary is what is done once a call: the deadline, the count, the record. What
// stands after it in the chain is done once for each time that it asks.
func unary(o Options, name string, calls call.Counter, watch *watcher) grpc.UnaryClientInterceptor {
	budget := call.NewBudget()
	return func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
		deadline := call.Deadline(ctx, o.Timeout)
		var p peer.Peer
		opts = append(opts, grpc.Peer(&p))
		ask := func(ctx context.Context) error {
			p = peer.Peer{} // gRPC leaves the last one's if it reaches no server
			return invoke(ctx, method, req, reply, cc, opts...)
		}
		var err error
		if repeatable(o.Idempotent, method) {
			err = repeat(ctx, deadline, budget, ask)
		} else {
			attempt, cancel := context.WithDeadline(ctx, deadline)
			err = ask(attempt)
			cancel()
		}
		err = watch.classify(err, p.Addr != nil)

		calls.Add(name, "grpc", call.ClassOf(err))
		record := call.RecordOf(ctx)
		record.Addresses = watch.addresses()
		if p.Addr != nil {
			record.Peer = p.Addr.String()
		}
		return err
	}
}

// stream does the same for streams, which have no deadline: they end when
// their context does.
func stream(name string, calls call.Counter, watch *watcher) grpc.StreamClientInterceptor {
	return func(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
		s, err := open(ctx, desc, cc, method, opts...)
		if err != nil {
			err = watch.classify(err, false)
			calls.Add(name, "grpc", call.ClassOf(err))
			return nil, err
		}
		return &classified{ClientStream: s, many: desc.ServerStreams, name: name, calls: calls, watch: watch}, nil
	}
}

type classified struct {
	grpc.ClientStream
	many  bool // answers, and io.EOF after the last; else one
	name  string
	calls call.Counter
	watch *watcher
	ended bool
}

func (c *classified) RecvMsg(m any) error {
	err := c.ClientStream.RecvMsg(m)
	if err == nil && c.many {
		return nil
	}
	outcome := call.OK
	if err != nil && !errors.Is(err, io.EOF) {
		_, reached := peer.FromContext(c.Context())
		err = c.watch.classify(err, reached)
		outcome = call.ClassOf(err)
	}
	if !c.ended {
		c.ended = true // it may be asked again
		c.calls.Add(c.name, "grpc", outcome)
	}
	return err
}
