// Package problem writes errors as application/problem+json (RFC 9457).
package problem

import (
	"encoding/json"
	"net/http"
	"strconv"
)

// ContentType of every answer that this package writes.
const ContentType = "application/problem+json"

// Problem is one error as a client sees it. Type stays "about:blank", which
// says that Title is the text of the status (RFC 9457, section 4.2.1).
type Problem struct {
	Title  string `json:"title"`
	Status int    `json:"status"`
	// Detail says what was wrong and what to do about it, for a person.
	Detail string `json:"detail,omitempty"`
	// Class says what kind of failure it was, for a program (see package call).
	Class string `json:"class,omitempty"`
	// TraceID finds this request in logs and traces.
	TraceID string `json:"traceId,omitempty"`
	// Call is what is known of the call that failed, if one was made.
	Call any `json:"call,omitempty"`
	// RetryAfter, in whole seconds, is sent as the header of that name.
	RetryAfter int `json:"-"`
}

// Write answers p. A Title that is empty is the text of the status.
func Write(w http.ResponseWriter, p Problem) {
	if p.RetryAfter > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(p.RetryAfter))
	}
	w.Header().Set("Content-Type", ContentType)
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(p.Status)
	_, _ = w.Write(p.JSON()) // the client may have left
}

// JSON is the problem as it is sent.
func (p Problem) JSON() []byte {
	if p.Title == "" {
		p.Title = http.StatusText(p.Status)
	}
	body, err := json.Marshal(p)
	if err != nil { // a Call that cannot be marshalled
		p.Call = nil
		body, _ = json.Marshal(p) // strings and numbers always can
	}
	return append(body, '\n')
}

// Error answers a problem of one status and one sentence.
func Error(w http.ResponseWriter, status int, detail string) {
	Write(w, Problem{Status: status, Detail: detail})
}
