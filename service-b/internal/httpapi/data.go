// Package httpapi is the HTTP side of service-b.
package httpapi

import (
	"errors"
	"net/http"
	"net/url"

	"google.golang.org/protobuf/encoding/protojson"

	"example.com/tandem/kit/call"
	"example.com/tandem/kit/problem"
	datav1 "example.com/tandem/proto/data/v1"
	"example.com/tandem/service-b/internal/domain"
)

// GetData is GET /api/data?key=: the JSON mapping of what gRPC's GetData
// returns, so that there is one contract, whichever way it is spoken.
func GetData(d *domain.Domain) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		key, err := keyOf(r.URL.Query())
		if err != nil {
			problem.Error(w, http.StatusBadRequest, err.Error())
			return
		}
		data, err := d.Get(r.Context(), &datav1.GetDataRequest{Key: key})
		if err != nil {
			problem.Error(w, statusOf(err), err.Error())
			return
		}
		body, err := protojson.Marshal(&datav1.GetDataResponse{Data: data})
		if err != nil {
			problem.Error(w, http.StatusInternalServerError, err.Error())
			return
		}
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Cache-Control", "no-store") // it says who served this call
		_, _ = w.Write(body)                        // the caller may have left
	}
}

// keyOf reads the key from a query. One that is there but empty is a mistake,
// which a message could not tell from one that is left out.
func keyOf(query url.Values) (string, error) {
	if !query.Has("key") {
		return "", nil
	}
	return query.Get("key"), datav1.CheckKey(query.Get("key"))
}

// statusOf returns the HTTP status of a domain error.
func statusOf(err error) int {
	if _, ok := errors.AsType[*domain.InvalidError](err); ok {
		return http.StatusBadRequest
	}
	return call.ClassOf(err).HTTPStatus()
}
