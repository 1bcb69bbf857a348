package backend

import (
	"context"
	"errors"
	"io"
	"iter"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"

	"example.com/tandem/kit/call"
	"example.com/tandem/kit/retry"
	datav1 "example.com/tandem/proto/data/v1"
)

const (
	// baseReopen and maxReopen bound the wait before a stream is opened again.
	baseReopen, maxReopen = 250 * time.Millisecond, 10 * time.Second
	// stableAfter is how long a stream must have lived for the wait to start
	// from baseReopen again. One that breaks sooner, even after its first
	// message, counts as another failure in a row.
	stableAfter = 10 * time.Second
)

// GRPC calls service-b over gRPC.
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

// Get makes one call.
func (g *GRPC) Get(ctx context.Context, key string) (*datav1.Data, CallInfo, error) {
	start := time.Now()
	ctx, record := call.WithRecord(ctx)
	data, err := g.get(ctx, key)
	return data, describe(ctx, "grpc", g.target, start, record), err
}

func (g *GRPC) get(ctx context.Context, key string) (*datav1.Data, error) {
	response, err := g.client.GetData(ctx, &datav1.GetDataRequest{Key: key})
	if err != nil {
		return nil, refusal(err)
	}
	return dataOf(response)
}

// refusal returns an *InvalidError if service-b found fault with the request.
func refusal(err error) error {
	if s := call.StatusOf(err); s.Code() == codes.InvalidArgument {
		return &InvalidError{s.Message()}
	}
	return err
}

// Watch implements Watcher. Servers end streams when they drain and when a
// connection reaches its maximum age, so a broken stream is normal.
func (g *GRPC) Watch(ctx context.Context, key string, interval time.Duration) iter.Seq2[*datav1.WatchDataResponse, error] {
	request := &datav1.WatchDataRequest{Key: key, Interval: durationpb.New(interval)}
	return func(yield func(*datav1.WatchDataResponse, error) bool) {
		for failures := 1; ; failures++ {
			start, served := time.Now(), false
			err := g.watchOnce(ctx, request, func(m *datav1.WatchDataResponse) bool {
				served = true
				return yield(m, nil)
			})
			if err == nil || ctx.Err() != nil {
				return
			}
			permanent := call.ClassOf(err) == call.Other // a retry would fail alike
			if permanent || !served {
				if !yield(nil, err) || permanent {
					return
				}
			}
			if served && time.Since(start) >= stableAfter {
				failures = 1
			}
			if !retry.Sleep(ctx, retry.Backoff(failures, baseReopen, maxReopen)) {
				return
			}
		}
	}
}

// watchOnce reads one stream until it breaks, or until yield wants no more,
// and then returns nil.
func (g *GRPC) watchOnce(ctx context.Context, request *datav1.WatchDataRequest, yield func(*datav1.WatchDataResponse) bool) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	// Silence cancels the stream. The cause makes its class that of a deadline.
	limit := request.GetInterval().AsDuration() + g.silence
	silence := time.AfterFunc(limit, func() { cancel(context.DeadlineExceeded) })
	defer silence.Stop()

	stream, err := g.client.WatchData(ctx, request)
	if err != nil {
		return refusal(err)
	}
	for {
		message, err := stream.Recv()
		silence.Stop() // while the reader takes its time
		if errors.Is(err, io.EOF) {
			return &call.Error{Class: call.Unavailable, Err: errors.New("service-b ended the stream")}
		}
		if err != nil {
			return refusal(err)
		}
		if !yield(message) {
			return nil
		}
		silence.Reset(limit)
	}
}
