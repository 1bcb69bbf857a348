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
	"example.com/tandem/kit/grpcclient"
	"example.com/tandem/kit/retry"
	datav1 "example.com/tandem/proto/data/v1"
)

const (
	// reopenBase and reopenMax are the first and the largest ceiling of the random
	// backoff before a stream is opened again (see retry.Backoff).
	reopenBase, reopenMax = 250 * time.Millisecond, 10 * time.Second
	// stableAfter is the age at which a stream that breaks resets the ceiling to
	// reopenBase. A younger stream that breaks, even after its first message,
	// counts as another failure in a row.
	stableAfter = 10 * time.Second
	// silentReopens is how many times in a row a stream that had messages may fail to open
	// again before the reader hears of it: together with the first, three attempts, as a
	// call makes. A proxy in front of an instance that has just died accepts streams.
	silentReopens = 2
)

// GRPC calls service-b over gRPC.
type GRPC struct {
	client     datav1.DataServiceClient
	target     string
	view       *grpcclient.View
	maxSilence time.Duration
}

// NewGRPC returns a Backend and Watcher that calls service-b over a connection of
// kit's grpcclient, whose view shows its endpoints. A stream counts as broken when a
// message is late by more than maxSilence.
func NewGRPC(conn *grpc.ClientConn, view *grpcclient.View, maxSilence time.Duration) *GRPC {
	return &GRPC{client: datav1.NewDataServiceClient(conn), target: conn.Target(), view: view, maxSilence: maxSilence}
}

// Target returns the configured name of service-b.
func (g *GRPC) Target() string { return g.target }

// Endpoints returns the addresses behind it, as the client knows them now.
func (g *GRPC) Endpoints() []call.Endpoint { return g.view.Endpoints() }

// Get implements Backend.
func (g *GRPC) Get(ctx context.Context, key string) (*datav1.Data, CallInfo, error) {
	start := time.Now()
	ctx, record := call.WithRecord(ctx)
	data, err := g.get(ctx, key)
	return data, newCallInfo(ctx, "grpc", g.target, start, record), err
}

func (g *GRPC) get(ctx context.Context, key string) (*datav1.Data, error) {
	response, err := g.client.GetData(ctx, &datav1.GetDataRequest{Key: key})
	if err != nil {
		return nil, withInvalid(err)
	}
	return dataOf(response)
}

// Watch implements Watcher. A server ends its streams when it drains and when a
// connection reaches its maximum age, so a broken stream is normal.
func (g *GRPC) Watch(ctx context.Context, key string, interval time.Duration) iter.Seq2[*datav1.WatchDataResponse, error] {
	req := &datav1.WatchDataRequest{Key: key, Interval: durationpb.New(interval)}
	return func(yield func(*datav1.WatchDataResponse, error) bool) {
		unopened := silentReopens // until the first message, every failure is reported
		for failures := 1; ; failures++ {
			start, received := time.Now(), false
			err := g.watchStream(ctx, req, func(m *datav1.WatchDataResponse) bool {
				received = true
				return yield(m, nil)
			})
			if err == nil || ctx.Err() != nil {
				return
			}
			class := call.ClassOf(err)
			permanent := class == call.Other || class == call.Denied // a retry would fail in the same way
			if unopened++; received {
				unopened = 0
			}
			if permanent || unopened > silentReopens {
				if !yield(nil, err) || permanent {
					return
				}
			}
			if received && time.Since(start) >= stableAfter {
				failures = 1
			}
			if !retry.Sleep(ctx, retry.Backoff(failures, reopenBase, reopenMax)) {
				return
			}
		}
	}
}

// watchStream reads one stream. It returns the error that ended the stream, or
// nil if yield returned false.
func (g *GRPC) watchStream(ctx context.Context, req *datav1.WatchDataRequest, yield func(*datav1.WatchDataResponse) bool) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	// A silent stream is canceled. With this cause, the error has class timeout.
	limit := req.GetInterval().AsDuration() + g.maxSilence
	silence := time.AfterFunc(limit, func() { cancel(context.DeadlineExceeded) })
	defer silence.Stop()

	stream, err := g.client.WatchData(ctx, req)
	if err != nil {
		return withInvalid(err)
	}
	for {
		message, err := stream.Recv()
		silence.Stop() // the time that yield takes does not count
		if errors.Is(err, io.EOF) {
			return &call.Error{Class: call.Unavailable, Err: errors.New("service-b ended the stream")}
		}
		if err != nil {
			return withInvalid(err)
		}
		if !yield(message) {
			return nil
		}
		silence.Reset(limit)
	}
}

// withInvalid returns an *InvalidError if service-b rejected the request as
// invalid, and err otherwise.
func withInvalid(err error) error {
	if s := call.StatusOf(err); s.Code() == codes.InvalidArgument {
		return &InvalidError{s.Message()}
	}
	return err
}
