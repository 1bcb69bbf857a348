package grpcapi_test

import (
	"context"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"example.com/tandem/kit/instance"
	datav1 "example.com/tandem/proto/data/v1"
	"example.com/tandem/service-b/internal/domain"
	"example.com/tandem/service-b/internal/grpcapi"
)

func TestGetData(t *testing.T) {
	service := grpcapi.New(domain.New(instance.Instance{Pod: "b-1"}, "hello"))

	response, err := service.GetData(t.Context(), &datav1.GetDataRequest{Key: "ada"})
	require.NoError(t, err)
	assert.Equal(t, "hello, ada", response.GetData().GetMessage())
	assert.Equal(t, "b-1", response.GetData().GetServedBy().GetPod())

	_, err = service.GetData(t.Context(), &datav1.GetDataRequest{Key: "\x00"})
	assert.Equal(t, codes.InvalidArgument, status.Code(err), "the key is invalid")

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = service.GetData(ctx, &datav1.GetDataRequest{})
	assert.Equal(t, codes.Canceled, status.Code(err), "the caller canceled the call")
}
