package httpclient

import "net/http"

// idempotent reports whether a request may be retried after it was sent: by its
// method (RFC 9110, section 9.2.2), or because it has an Idempotency-Key. PUT and
// DELETE are excluded, because the response to a retry may differ from the first.
func idempotent(req *http.Request) bool {
	switch req.Method {
	case http.MethodGet, http.MethodHead, http.MethodOptions:
		return true
	default:
		return req.Header.Get("Idempotency-Key") != ""
	}
}

// replayable reports whether the body of a request can be sent again.
func replayable(req *http.Request) bool {
	return req.Body == nil || req.Body == http.NoBody || req.GetBody != nil
}

// rewind resets the body of a request that was sent.
func rewind(req *http.Request) (err error) {
	if req.GetBody != nil {
		req.Body, err = req.GetBody()
	}
	return err
}
