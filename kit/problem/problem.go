// Package problem writes error responses as application/problem+json (RFC 9457).
package problem

import (
	"encoding/json"
	"net/http"
	"strconv"
)

// ContentType is the media type of every response that this package writes.
const ContentType = "application/problem+json"

// Problem is the body of an error response. It has no type member, which means
// "about:blank": the title is the text of the status (RFC 9457, section 4.2.1).
type Problem struct {
	// Title defaults to the text of the status.
	Title  string `json:"title"`
	Status int    `json:"status"`
	// Detail tells a person what was wrong and how to fix it.
	Detail string `json:"detail,omitempty"`
	// Class tells a program the kind of failure (see call.Class).
	Class string `json:"class,omitempty"`
	// TraceID is the id of this request in logs and traces.
	TraceID string `json:"traceId,omitempty"`
	// Call describes the call to another service that failed, if there was one.
	Call any `json:"call,omitempty"`
	// RetryAfter is the value of the header Retry-After in seconds, if positive.
	RetryAfter int `json:"-"`
}

// Write responds with p.
func Write(w http.ResponseWriter, p Problem) {
	if p.RetryAfter > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(p.RetryAfter))
	}
	w.Header().Set("Content-Type", ContentType)
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(p.Status)
	_, _ = w.Write(p.JSON()) // the client may have disconnected
}

// JSON returns the body of the response. It omits a Call that cannot be marshalled.
func (p Problem) JSON() []byte {
	if p.Title == "" {
		p.Title = http.StatusText(p.Status)
	}
	body, err := json.Marshal(p)
	if err != nil {
		p.Call = nil
		body, _ = json.Marshal(p) // cannot fail: only strings and a number are left
	}
	return append(body, '\n')
}

// Error responds with a status and a detail.
func Error(w http.ResponseWriter, status int, detail string) {
	Write(w, Problem{Status: status, Detail: detail})
}
