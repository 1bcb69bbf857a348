// Package grpcapi is the gRPC side of service-b.
package grpcapi

import (
	"context"
	"errors"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	datav1 "example.com/tandem/proto/data/v1"
	"example.com/tandem/service-b/internal/domain"
)

// Data is data.v1.DataService.
type Data struct {
	datav1.UnimplementedDataServiceServer
	domain *domain.Domain
}

// New makes the service over a domain.
func New(d *domain.Domain) *Data { return &Data{domain: d} }

// GetData answers once.
func (s *Data) GetData(ctx context.Context, req *datav1.GetDataRequest) (*datav1.GetDataResponse, error) {
	data, err := s.domain.Get(ctx, req)
	if err != nil {
		return nil, statusOf(err)
	}
	return &datav1.GetDataResponse{Data: data}, nil
}

// WatchData answers once an interval until the client leaves or the server drains.
func (s *Data) WatchData(req *datav1.WatchDataRequest, out grpc.ServerStreamingServer[datav1.WatchDataResponse]) error {
	watch, err := s.domain.Watch(out.Context(), req)
	if err != nil {
		return statusOf(err)
	}
	for response := range watch {
		if err := out.Send(response); err != nil {
			return err
		}
	}
	return status.FromContextError(out.Context().Err()).Err()
}

// statusOf returns the gRPC status of a domain error.
func statusOf(err error) error {
	if _, ok := errors.AsType[*domain.InvalidError](err); ok {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	return status.FromContextError(err).Err()
}
