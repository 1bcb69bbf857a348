// Package httpapi serves package domain over HTTP. It parses queries, writes
// JSON, and converts errors to application/problem+json; it decides nothing else.
package httpapi

import (
	"errors"
	"net/http"

	"google.golang.org/protobuf/encoding/protojson"

	"example.com/tandem/kit/call"
	"example.com/tandem/kit/problem"
	datav1 "example.com/tandem/proto/data/v1"
	"example.com/tandem/service-b/internal/domain"
)

// GetData handles GET /api/data?key=. Its response is the JSON mapping of the
// GetDataResponse that gRPC returns, so both transports have one contract.
func GetData(d *domain.Domain) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		key, err := datav1.KeyFromQuery(r.URL.Query())
		if err != nil {
			problem.Error(w, http.StatusBadRequest, err.Error())
			return
		}
		data, err := d.Get(r.Context(), &datav1.GetDataRequest{Key: key})
		if err != nil {
			problem.Error(w, httpStatus(err), err.Error())
			return
		}
		body, err := protojson.Marshal(&datav1.GetDataResponse{Data: data})
		if err != nil {
			problem.Error(w, http.StatusInternalServerError, err.Error())
			return
		}
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Cache-Control", "no-store") // the response names the instance that served this call
		_, _ = w.Write(body)                        // fails only if the client has disconnected
	}
}

// httpStatus returns the HTTP status of an error of package domain.
func httpStatus(err error) int {
	if _, ok := errors.AsType[*domain.InvalidError](err); ok {
		return http.StatusBadRequest
	}
	return call.ClassOf(err).HTTPStatus()
}
