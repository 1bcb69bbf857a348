// Package domain is what service-b knows and does. It knows the contract's
// messages, but not how they travel.
package domain

import (
	"context"
	"fmt"
	"iter"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	datav1 "example.com/tandem/proto/data/v1"
)

// Domain hands out data in the name of one instance.
type Domain struct {
	me      *datav1.Instance
	message string
}

// New makes the domain of an instance; message is what its data says.
func New(me *datav1.Instance, message string) *Domain {
	return &Domain{me: me, message: message}
}

// InvalidError is a request that breaks a rule of the contract.
type InvalidError struct{ Err error }

func (e *InvalidError) Error() string { return e.Err.Error() }

// Unwrap returns the rule that was broken.
func (e *InvalidError) Unwrap() error { return e.Err }

// Get returns the data of a key. It returns an *InvalidError if the request
// breaks a rule, or ctx's error if no one waits for the answer any more.
func (d *Domain) Get(ctx context.Context, req *datav1.GetDataRequest) (*datav1.Data, error) {
	if err := req.Check(); err != nil {
		return nil, &InvalidError{err}
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return d.data(req.GetKey()), nil
}

// Watch yields the data of a key at once and then once an interval, until ctx
// ends. It returns an *InvalidError if the request breaks a rule.
func (d *Domain) Watch(ctx context.Context, req *datav1.WatchDataRequest) (iter.Seq[*datav1.WatchDataResponse], error) {
	interval, err := req.Check()
	if err != nil {
		return nil, &InvalidError{err}
	}
	return func(yield func(*datav1.WatchDataResponse) bool) {
		ticker := time.NewTicker(interval)
		defer ticker.Stop()
		for n := uint32(1); ; n++ {
			if !yield(&datav1.WatchDataResponse{Data: d.data(req.GetKey()), Sequence: n}) {
				return
			}
			select {
			case <-ticker.C:
			case <-ctx.Done():
				return
			}
		}
	}, nil
}

func (d *Domain) data(key string) *datav1.Data {
	message := d.message
	if key != "" {
		message = fmt.Sprintf("%s, %s", d.message, key)
	}
	return &datav1.Data{Key: key, Message: message, ServedBy: d.me, ServedAt: timestamppb.Now()}
}
