// Package api holds the handlers of service-a: one call to service-b (data.go), many
// calls (spread.go), a stream (stream.go), the calls as they happen (live.go), and the
// faults of service-b's pods (faults.go). A handler parses its query (query.go), calls
// package backend, live or faults, and writes JSON, server-sent events or
// application/problem+json.
package api

import (
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

// dataResponse is the response of /api/data.
type dataResponse struct {
	ServedBy instance.Instance `json:"servedBy"` // this instance of service-a
	Call     backend.CallInfo  `json:"call"`
	Data     json.RawMessage   `json:"data"` // from service-b
}

// Data handles GET /api/data?via=http|grpc&key=: it calls service-b once.
func Data(me instance.Instance, backends map[string]backend.Backend) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		params, err := parseParams(r.URL.Query(), backends)
		if err != nil {
			problem.Error(w, http.StatusBadRequest, err.Error())
			return
		}
		data, info, err := params.backend.Get(r.Context(), params.key)
		if err != nil {
			problem.Write(w, callProblem(err, info))
			return
		}
		writeJSON(w, dataResponse{ServedBy: me, Call: info, Data: protoJSON(data)})
	}
}

// callProblem describes a failed call as a problem.
func callProblem(err error, info backend.CallInfo) problem.Problem {
	if invalid, ok := errors.AsType[*backend.InvalidError](err); ok {
		return problem.Problem{Status: http.StatusBadRequest, Detail: invalid.Detail, Call: info}
	}
	class := call.ClassOf(err)
	p := problem.Problem{
		Status:  class.HTTPStatus(),
		Detail:  "service-b over " + info.Transport + ": " + err.Error(),
		Class:   string(class),
		TraceID: info.TraceID,
		Call:    info,
	}
	if p.Status == call.StatusCanceled {
		p.Title = "Client Closed Request"
	}
	if p.Status == http.StatusServiceUnavailable {
		p.RetryAfter = 1
	}
	return p
}

// protoJSON returns the JSON mapping of a message, as service-b writes it.
func protoJSON(m proto.Message) json.RawMessage {
	body, err := protojson.Marshal(m)
	if err != nil {
		return json.RawMessage("null") // only for a string of invalid UTF-8, which decoding rejects
	}
	return body
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store") // the response describes this call only
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(v) // fails only if the client has disconnected
}
