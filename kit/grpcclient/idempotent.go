package grpcclient

import (
	"strings"
	"sync"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
)

// idempotentMethods caches idempotent, by method.
var idempotentMethods sync.Map

// idempotent reports whether a method, such as "/data.v1.DataService/GetData",
// may be sent twice: whether its .proto sets option idempotency_level to
// NO_SIDE_EFFECTS or IDEMPOTENT. A method without generated code is unknown here,
// and not retried.
func idempotent(method string) bool {
	if known, ok := idempotentMethods.Load(method); ok {
		return known.(bool)
	}
	name := strings.ReplaceAll(strings.TrimPrefix(method, "/"), "/", ".")
	found, _ := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(name)) // nil if there is none
	level := descriptorpb.MethodOptions_IDEMPOTENCY_UNKNOWN
	if descriptor, ok := found.(protoreflect.MethodDescriptor); ok {
		level = descriptor.Options().(*descriptorpb.MethodOptions).GetIdempotencyLevel()
	}
	known := level != descriptorpb.MethodOptions_IDEMPOTENCY_UNKNOWN
	idempotentMethods.Store(method, known)
	return known
}
