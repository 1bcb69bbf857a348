// Package grpcapi serves package domain over gRPC. It converts errors to gRPC
// statuses, and decides nothing else.
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

// DataService implements data.v1.DataService.
type DataService struct {
	datav1.UnimplementedDataServiceServer
	domain *domain.Domain
}

// New returns a DataService that calls d.
func New(d *domain.Domain) *DataService { return &DataService{domain: d} }

// GetData returns the data of a key.
func (s *DataService) GetData(ctx context.Context, req *datav1.GetDataRequest) (*datav1.GetDataResponse, error) {
	data, err := s.domain.Get(ctx, req)
	if err != nil {
		return nil, statusError(err)
	}
	return &datav1.GetDataResponse{Data: data}, nil
}

// WatchData sends one message for each interval until the client cancels the
// stream or the server drains.
func (s *DataService) WatchData(req *datav1.WatchDataRequest, stream grpc.ServerStreamingServer[datav1.WatchDataResponse]) error {
	responses, err := s.domain.Watch(stream.Context(), req)
	if err != nil {
		return statusError(err)
	}
	for response := range responses {
		if err := stream.Send(response); err != nil {
			return err
		}
	}
	return status.FromContextError(stream.Context().Err()).Err()
}

// statusError converts an error of package domain to one with a gRPC status.
func statusError(err error) error {
	if _, ok := errors.AsType[*domain.InvalidError](err); ok {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	return status.FromContextError(err).Err()
}
