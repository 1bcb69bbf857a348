// Package domain holds what service-b does, independent of the transport: it
// takes and returns the contract's messages. Packages httpapi and grpcapi serve
// it over HTTP and gRPC. Nothing about a transport belongs here.
package domain

import (
	"context"
	"fmt"
	"iter"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"example.com/tandem/kit/instance"
	datav1 "example.com/tandem/proto/data/v1"
)

// Domain returns data on behalf of one instance.
type Domain struct {
	message  string
	servedBy *datav1.Instance
}

// New returns the domain of the instance me. Data contains message.
func New(me instance.Instance, message string) *Domain {
	return &Domain{message: message, servedBy: &datav1.Instance{
		Service: me.Service, Version: me.Version, Pod: me.Pod, Node: me.Node, Zone: me.Zone, Namespace: me.Namespace, Ip: me.IP,
	}}
}

// Get returns the data of a key. It returns an *InvalidError if the request is
// invalid, and ctx's error if ctx has ended.
func (d *Domain) Get(ctx context.Context, req *datav1.GetDataRequest) (*datav1.Data, error) {
	if err := req.Check(); err != nil {
		return nil, &InvalidError{err}
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return d.data(req.GetKey()), nil
}

// Watch yields the data of a key at once and then once for each interval, until
// ctx ends. It returns an *InvalidError if the request is invalid.
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
	return &datav1.Data{Key: key, Message: message, ServedBy: d.servedBy, ServedAt: timestamppb.Now()}
}

// InvalidError reports a request that breaks a rule of the contract.
type InvalidError struct{ Err error }

func (e *InvalidError) Error() string { return e.Err.Error() }

// Unwrap returns the error that names the broken rule.
func (e *InvalidError) Unwrap() error { return e.Err }
