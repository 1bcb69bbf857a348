package backend

import (
	"context"
	"errors"
	"io"
	"iter"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"example.com/tandem/kit/call"
	datav1 "example.com/tandem/proto/data/v1"
)

// reopenAfter is how long to wait before a stream that could not be had is
// asked for again.
const reopenAfter = 250 * time.Millisecond

// GRPC asks over gRPC.
type GRPC struct {
	client  datav1.DataServiceClient
	target  string
	silence time.Duration
}

// NewGRPC makes a Backend of a connection (kit's grpcclient). A stream is taken
// to be broken when a message is late by more than silence.
func NewGRPC(conn *grpc.ClientConn, silence time.Duration) *GRPC {
	return &GRPC{client: datav1.NewDataServiceClient(conn), target: conn.Target(), silence: silence}
}

// Get asks once.
func (g *GRPC) Get(ctx context.Context, key string) (*datav1.Data, Call, error) {
	start := time.Now()
	ctx, record := call.Recorded(ctx)
	data, err := g.get(ctx, key)
	return data, describe(ctx, "grpc", g.target, start, record), err
}

func (g *GRPC) get(ctx context.Context, key string) (*datav1.Data, error) {
	response, err := g.client.GetData(ctx, &datav1.GetDataRequest{Key: key})
	if err != nil {
		return nil, refusal(err)
	}
	if response.GetData().GetServedBy().GetPod() == "" {
		return nil, errEmpty
	}
	return response.GetData(), nil
}

// refusal is an InvalidError if service-b found fault with the request.
func refusal(err error) error {
	if s := status.Convert(err); s.Code() == codes.InvalidArgument {
		return &InvalidError{s.Message()}
	}
	return err
}

// Watch yields messages and, while no stream can be had, errors. Streams break
// as a matter of course: servers end them when they drain, and when their
// connections are old.
func (g *GRPC) Watch(ctx context.Context, key string, interval time.Duration) iter.Seq2[*datav1.WatchDataResponse, error] {
	request := &datav1.WatchDataRequest{Key: key, Interval: durationpb.New(interval)}
	return func(yield func(*datav1.WatchDataResponse, error) bool) {
		for {
			served := false
			err := g.watchOnce(ctx, request, func(m *datav1.WatchDataResponse) bool {
				served = true
				return yield(m, nil)
			})
			switch {
			case err == nil || ctx.Err() != nil:
				return
			case served:
				continue
			case !yield(nil, err):
				return
			}
			select {
			case <-time.After(reopenAfter):
			case <-ctx.Done():
				return
			}
		}
	}
}

// watchOnce reads one stream until it breaks, or until yield wants no more,
// and then returns nil.
func (g *GRPC) watchOnce(ctx context.Context, request *datav1.WatchDataRequest, yield func(*datav1.WatchDataResponse) bool) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	patience := request.GetInterval().AsDuration() + g.silence
	silent := errors.New("service-b has gone silent")
	watchdog := time.AfterFunc(patience, cancel)
	defer watchdog.Stop()

	stream, err := g.client.WatchData(ctx, request)
	if err != nil {
		return refusal(err)
	}
	for {
		message, err := stream.Recv()
		switch {
		case err != nil && !watchdog.Stop():
			return &call.Error{Class: call.Timeout, Err: silent}
		case errors.Is(err, io.EOF):
			return &call.Error{Class: call.Unavailable, Err: errors.New("service-b ended the stream")}
		case err != nil:
			return refusal(err)
		}
		watchdog.Reset(patience)
		if !yield(message) {
			return nil
		}
		watchdog.Reset(patience) // a slow reader of ours is no silence of service-b's
	}
}
