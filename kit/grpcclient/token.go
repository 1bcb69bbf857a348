package grpcclient

import (
	"context"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"example.com/tandem/kit/call"
)

// authorize adds the token that says who calls to the options of a call. A call without a
// token is counted here, because it goes no further.
func (i *interceptors) authorize(ctx context.Context, deadline time.Time, opts []grpc.CallOption) ([]grpc.CallOption, error) {
	if i.token == nil {
		return opts, nil
	}
	ctx, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	authorization, err := i.token.Authorization(ctx)
	if err != nil {
		code := codes.Unavailable
		if ctx.Err() != nil {
			code = status.FromContextError(ctx.Err()).Code()
		}
		class := call.ClassOf(err)
		i.calls.Add(i.host, "grpc", class)
		return opts, &call.Error{Class: class, Err: status.Error(code, err.Error())}
	}
	return append(opts, grpc.PerRPCCredentials(bearer(authorization))), nil
}

// bearer is the value of the header authorization.
type bearer string

// GetRequestMetadata implements credentials.PerRPCCredentials.
func (b bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": string(b)}, nil
}

// RequireTransportSecurity returns false: in a mesh the sidecars encrypt, and gRPC sees a
// plaintext connection. Without a mesh and without Options.TLS, others on the network can
// read the token.
func (bearer) RequireTransportSecurity() bool { return false }
