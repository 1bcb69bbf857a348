package grpcclient

import (
	"strings"
	"sync"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
)

// idempotentMethods caches the results of idempotent by method.
var idempotentMethods sync.Map

// idempotent reports whether a method, such as "/data.v1.DataService/GetData",
// may be retried after it was sent: its .proto sets option idempotency_level to
// NO_SIDE_EFFECTS or IDEMPOTENT. It returns false for methods whose generated
// code is not linked in.
func idempotent(method string) bool {
	if cached, ok := idempotentMethods.Load(method); ok {
		return cached.(bool)
	}
	name := strings.ReplaceAll(strings.TrimPrefix(method, "/"), "/", ".")
	found, _ := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(name)) // nil if unknown
	level := descriptorpb.MethodOptions_IDEMPOTENCY_UNKNOWN
	if descriptor, ok := found.(protoreflect.MethodDescriptor); ok {
		level = descriptor.Options().(*descriptorpb.MethodOptions).GetIdempotencyLevel()
	}
	result := level != descriptorpb.MethodOptions_IDEMPOTENCY_UNKNOWN
	idempotentMethods.Store(method, result)
	return result
}
