// Package echo is a gRPC service, and its client, for tests of grpcclient and
// grpcserver. Each test supplies the handlers. It needs no generated code.
package echo

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// Service is the name of the service.
const Service = "kit.test.Echo"

// The methods. Say and Write have the same handler, but only Say is idempotent.
// Watch streams from the server, Put from the client.
const (
	Say   = "/" + Service + "/Say"
	Write = "/" + Service + "/Write"
	Watch = "/" + Service + "/Watch"
	Put   = "/" + Service + "/Put"
)

// init registers the contract, as generated code would: clients read from it which
// methods are idempotent.
func init() { //nolint:gochecknoinits // as in generated code
	text := new(".google.protobuf.StringValue")
	method := func(name string, level descriptorpb.MethodOptions_IdempotencyLevel) *descriptorpb.MethodDescriptorProto {
		return &descriptorpb.MethodDescriptorProto{
			Name: new(name), InputType: text, OutputType: text,
			Options: &descriptorpb.MethodOptions{IdempotencyLevel: level.Enum()},
		}
	}
	file, err := protodesc.NewFile(&descriptorpb.FileDescriptorProto{
		Name: new("kit/test/echo.proto"), Package: new("kit.test"), Syntax: new("proto3"),
		Dependency: []string{"google/protobuf/wrappers.proto"},
		Service: []*descriptorpb.ServiceDescriptorProto{{Name: new("Echo"), Method: []*descriptorpb.MethodDescriptorProto{
			method("Say", descriptorpb.MethodOptions_NO_SIDE_EFFECTS),
			method("Write", descriptorpb.MethodOptions_IDEMPOTENCY_UNKNOWN),
		}}},
	}, protoregistry.GlobalFiles)
	if err == nil {
		err = protoregistry.GlobalFiles.RegisterFile(file)
	}
	if err != nil {
		panic(err)
	}
}

// Echo holds the handlers of a server.
type Echo struct {
	// Say handles Say and Write. If it is nil, the response is the request.
	Say func(ctx context.Context, text string) (string, error)
	// Watch handles Watch. It sends messages with Send.
	Watch func(ss grpc.ServerStream) error
}

// Register registers the service. Put responds with the last message of the stream.
func (e Echo) Register(r grpc.ServiceRegistrar) {
	unary := func(_ any, ctx context.Context, decode func(any) error, intercept grpc.UnaryServerInterceptor) (any, error) {
		in := new(wrapperspb.StringValue)
		if err := decode(in); err != nil {
			return nil, err
		}
		say := func(ctx context.Context, _ any) (any, error) {
			if e.Say == nil {
				return in, nil
			}
			out, err := e.Say(ctx, in.GetValue())
			return wrapperspb.String(out), err
		}
		if intercept == nil {
			return say(ctx, in)
		}
		return intercept(ctx, in, &grpc.UnaryServerInfo{FullMethod: Say}, say)
	}
	r.RegisterService(&grpc.ServiceDesc{
		ServiceName: Service,
		HandlerType: (*any)(nil),
		Methods:     []grpc.MethodDesc{{MethodName: "Say", Handler: unary}, {MethodName: "Write", Handler: unary}},
		Streams: []grpc.StreamDesc{
			{StreamName: "Watch", ServerStreams: true, Handler: func(_ any, ss grpc.ServerStream) error {
				if err := ss.RecvMsg(new(wrapperspb.StringValue)); err != nil {
					return err
				}
				return e.Watch(ss)
			}},
			{StreamName: "Put", ClientStreams: true, Handler: func(_ any, ss grpc.ServerStream) error {
				var last wrapperspb.StringValue
				for ss.RecvMsg(&last) == nil {
				}
				return ss.SendMsg(&last)
			}},
		},
	}, e)
}

// Send sends one message to the client of a Watch.
func Send(ss grpc.ServerStream, text string) error { return ss.SendMsg(wrapperspb.String(text)) }

// Call calls Say or Write.
func Call(ctx context.Context, conn grpc.ClientConnInterface, method, text string, opts ...grpc.CallOption) (string, error) {
	out := new(wrapperspb.StringValue)
	err := conn.Invoke(ctx, method, wrapperspb.String(text), out, opts...)
	return out.GetValue(), err
}

// Stream is the client side of a Watch.
type Stream struct{ grpc.ClientStream }

// Open starts a Watch.
func Open(ctx context.Context, conn grpc.ClientConnInterface) (Stream, error) {
	s, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, Watch)
	if err != nil {
		return Stream{}, err
	}
	if err := s.SendMsg(wrapperspb.String("")); err != nil {
		return Stream{}, err
	}
	return Stream{s}, s.CloseSend()
}

// Recv waits for the next message.
func (s Stream) Recv() (string, error) {
	out := new(wrapperspb.StringValue)
	err := s.RecvMsg(out)
	return out.GetValue(), err
}
