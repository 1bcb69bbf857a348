package api

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"example.com/tandem/kit/call"
	"example.com/tandem/kit/instance"
	"example.com/tandem/kit/problem"
	"example.com/tandem/service-a/internal/backend"
)

// answer is the tree of one call: who asked, how it went, what came back.
type answer struct {
	ServedBy instance.Instance `json:"servedBy"`
	Call     backend.CallInfo  `json:"call"`
	Data     json.RawMessage   `json:"data"`
}

// Data is GET /api/data?via=http|grpc&key=: it asks service-b once.
func Data(me instance.Instance, backends map[string]backend.Backend) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		q, err := questionOf(r.URL.Query(), backends)
		if err != nil {
			problem.Error(w, http.StatusBadRequest, err.Error())
			return
		}
		data, how, err := q.backend.Get(r.Context(), q.key)
		if err != nil {
			problem.Write(w, problemOf(err, how))
			return
		}
		writeJSON(w, answer{ServedBy: me, Call: how, Data: message(data)})
	}
}

// problemOf is how a call that failed is reported.
func problemOf(err error, how backend.CallInfo) problem.Problem {
	if invalid, ok := errors.AsType[*backend.InvalidError](err); ok {
		return problem.Problem{Status: http.StatusBadRequest, Detail: invalid.Detail, Call: how}
	}
	class := call.ClassOf(err)
	p := problem.Problem{
		Status:  class.HTTPStatus(),
		Detail:  "service-b over " + how.Transport + ": " + err.Error(),
		Class:   string(class),
		TraceID: how.TraceID,
		Call:    how,
	}
	if p.Status == call.StatusCanceled {
		p.Title = "Client Closed Request"
	}
	if p.Status == http.StatusServiceUnavailable {
		p.RetryAfter = 1
	}
	return p
}

// message is the JSON mapping of a message, as service-b itself answers it.
func message(m proto.Message) json.RawMessage {
	body, err := protojson.Marshal(m)
	if err != nil {
		return json.RawMessage("null") // only a string that is not UTF-8 cannot be mapped, and decoding refuses those
	}
	return body
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store") // it says how this one call went
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(v) // the caller may have left
}

// Check asks whether service-b answers, for /health.
func Check(b backend.Backend) func(context.Context) error {
	return func(ctx context.Context) error {
		_, _, err := b.Get(ctx, "")
		return err
	}
}
