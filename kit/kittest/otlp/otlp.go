// Package otlp is a receiver of traces for tests: it accepts OTLP over gRPC and over
// HTTP, keeps every span in memory, and shows the spans of a trace as a tree. It is not
// a collector: it never forgets a span and passes none on.
package otlp

import (
	"cmp"
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	trace "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

// Span is one span. Its ids are in hex.
type Span struct {
	TraceID string `json:"traceId"`
	ID      string `json:"id"`
	Parent  string `json:"parent"` // empty for the first span of a trace
	Name    string `json:"name"`
	Kind    string `json:"kind"` // server, client, …
	Failed  bool   `json:"failed"`
	Start   uint64 `json:"start"` // nanoseconds since 1970
	// Attributes are those of the span, Resource those of the process.
	Attributes map[string]string `json:"attributes"`
	Resource   map[string]string `json:"resource"`
}

// Receiver keeps the spans that it receives. The zero value is ready to use.
type Receiver struct {
	collector.UnimplementedTraceServiceServer
	mu    sync.Mutex
	spans []Span
}

// Export receives spans over gRPC: register the Receiver as a TraceServiceServer.
func (r *Receiver) Export(_ context.Context, in *collector.ExportTraceServiceRequest) (*collector.ExportTraceServiceResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, process := range in.GetResourceSpans() {
		resource := texts(process.GetResource().GetAttributes())
		for _, scope := range process.GetScopeSpans() {
			for _, s := range scope.GetSpans() {
				r.spans = append(r.spans, Span{
					TraceID:    hex.EncodeToString(s.GetTraceId()),
					ID:         hex.EncodeToString(s.GetSpanId()),
					Parent:     hex.EncodeToString(s.GetParentSpanId()),
					Name:       s.GetName(),
					Kind:       strings.ToLower(strings.TrimPrefix(s.GetKind().String(), "SPAN_KIND_")),
					Failed:     s.GetStatus().GetCode() == trace.Status_STATUS_CODE_ERROR,
					Start:      s.GetStartTimeUnixNano(),
					Attributes: texts(s.GetAttributes()),
					Resource:   resource,
				})
			}
		}
	}
	return &collector.ExportTraceServiceResponse{}, nil
}

// texts returns attributes as text.
func texts(attributes []*common.KeyValue) map[string]string {
	out := map[string]string{}
	for _, a := range attributes {
		switch v := a.GetValue().GetValue().(type) {
		case *common.AnyValue_StringValue:
			out[a.GetKey()] = v.StringValue
		case *common.AnyValue_IntValue:
			out[a.GetKey()] = strconv.FormatInt(v.IntValue, 10)
		default:
			out[a.GetKey()] = a.GetValue().String()
		}
	}
	return out
}

// ServeHTTP receives spans at POST /v1/traces. GET /spans?trace=ID responds with those
// of one trace as JSON, and GET /readyz with 200.
func (r *Receiver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	switch req.Method + " " + req.URL.Path {
	case "POST /v1/traces":
		body, err := io.ReadAll(req.Body)
		var in collector.ExportTraceServiceRequest
		if err != nil || proto.Unmarshal(body, &in) != nil {
			http.Error(w, "not an OTLP request", http.StatusBadRequest)
			return
		}
		_, _ = r.Export(req.Context(), &in) // cannot fail
		w.Header().Set("Content-Type", "application/x-protobuf")
	case "GET /spans":
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(r.Trace(req.URL.Query().Get("trace"))) // the client may have disconnected
	case "GET /readyz":
	default:
		http.NotFound(w, req)
	}
}

// Spans returns all spans received so far, in the order in which they arrived.
func (r *Receiver) Spans() []Span {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.spans)
}

// Trace returns the spans of one trace, in the order in which they started.
func (r *Receiver) Trace(id string) []Span {
	spans := slices.DeleteFunc(r.Spans(), func(s Span) bool { return s.TraceID != id })
	slices.SortStableFunc(spans, func(a, b Span) int { return cmp.Compare(a.Start, b.Start) })
	return spans
}

// Tree shows spans as Trace returns them, one a line and each below its parent:
//
//	service-a server GET /api/data
//	  service-a client HTTP GET failed
//	  service-a client HTTP GET retry 1
//	    service-b server GET /api/data
//
// A span whose parent is not among them starts a tree of its own.
func Tree(spans []Span) string {
	var out strings.Builder
	var write func(parent, indent string)
	write = func(parent, indent string) {
		for _, s := range spans {
			known := slices.ContainsFunc(spans, func(o Span) bool { return o.ID == s.Parent })
			if s.Parent != parent && (parent != "" || known) {
				continue
			}
			fmt.Fprintf(&out, "%s%s %s %s", indent, s.Resource["service.name"], s.Kind, s.Name)
			if n := s.Attributes["http.request.resend_count"] + s.Attributes["previous-rpc-attempts"]; n != "" {
				out.WriteString(" retry " + n)
			}
			if s.Failed {
				out.WriteString(" failed")
			}
			out.WriteString("\n")
			write(s.ID, indent+"  ")
		}
	}
	write("", "")
	return out.String()
}
