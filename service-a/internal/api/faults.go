package api

import (
	"bytes"
	"errors"
	"io"
	"mime"
	"net/http"

	"github.com/go-chi/chi/v5"

	"example.com/tandem/kit/call"
	"example.com/tandem/kit/fault"
	"example.com/tandem/kit/problem"
	"example.com/tandem/service-a/internal/faults"
	"example.com/tandem/service-a/internal/live"
)

// pageHeader is a header that the page sends. A form of another site cannot send it, and a
// script of another site only if this server allowed it.
const pageHeader = "X-Tandem"

// SetFault handles PUT /api/faults/{pod}: it sets the fault of one pod of service-b.
func SetFault(pods *faults.Pods, c *live.Collector) http.HandlerFunc {
	return changeFault(c, func(r *http.Request, pod string) (faults.Status, error) {
		if contentType, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type")); contentType != "application/json" {
			return faults.Status{}, &requestError{http.StatusUnsupportedMediaType, "want Content-Type: application/json"}
		}
		body, err := io.ReadAll(r.Body)
		if err == nil {
			_, err = fault.Parse(bytes.NewReader(body))
		}
		if err != nil {
			return faults.Status{}, &requestError{http.StatusBadRequest, err.Error()}
		}
		return pods.Set(r.Context(), pod, body)
	})
}

// ClearFault handles DELETE /api/faults/{pod}: it removes the fault of one pod of service-b.
func ClearFault(pods *faults.Pods, c *live.Collector) http.HandlerFunc {
	return changeFault(c, func(r *http.Request, pod string) (faults.Status, error) {
		return pods.Clear(r.Context(), pod)
	})
}

// requestError is an error of the request.
type requestError struct {
	status int
	detail string
}

func (e *requestError) Error() string { return e.detail }

// changeFault responds with the pod's fault after a change, or with a problem.
func changeFault(c *live.Collector, change func(r *http.Request, pod string) (faults.Status, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get(pageHeader) != "1" {
			problem.Error(w, http.StatusForbidden, "want the header "+pageHeader+": 1, so that no other site can send this request")
			return
		}
		status, err := change(r, chi.URLParam(r, "pod"))
		if err != nil {
			problem.Write(w, faultProblem(err))
			return
		}
		c.FaultChanged(status)
		writeJSON(w, status.Status)
	}
}

func faultProblem(err error) problem.Problem {
	if bad, ok := errors.AsType[*requestError](err); ok {
		return problem.Problem{Status: bad.status, Detail: bad.detail}
	}
	if unknown, ok := errors.AsType[*faults.UnknownError](err); ok {
		return problem.Problem{Status: http.StatusNotFound, Detail: unknown.Detail}
	}
	if errors.Is(err, faults.ErrTooMany) {
		return problem.Problem{Status: http.StatusServiceUnavailable, Detail: err.Error()}
	}
	class := call.ClassOf(err)
	return problem.Problem{Status: class.HTTPStatus(), Detail: "change the fault: " + err.Error(), Class: string(class)}
}
