package httpserver

import (
	"errors"
	"net/http"
	"strconv"
)

// response records what a handler responds.
type response struct {
	http.ResponseWriter
	// mustClose reports whether the connection closes after this response. It is
	// called when the header is written: the drain may have started since the request
	// arrived.
	mustClose func() bool
	status    int // 0 until the header is written
	bytes     int64
	failed    bool // a write failed
}

func (w *response) WriteHeader(status int) {
	if w.status == 0 && (status >= 200 || status == http.StatusSwitchingProtocols) {
		w.status = status
		if w.mustClose() {
			w.Header().Set("Connection", "close")
		}
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *response) Write(p []byte) (int, error) {
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	n, err := w.ResponseWriter.Write(p)
	w.bytes += int64(n)
	w.failed = w.failed || err != nil
	return n, err
}

// FlushError sends what was written so far, for http.ResponseController.
func (w *response) FlushError() error {
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	err := http.NewResponseController(w.ResponseWriter).Flush()
	w.failed = w.failed || err != nil && !errors.Is(err, http.ErrNotSupported)
	return err
}

// Flush is FlushError for handlers that know http.Flusher only.
func (w *response) Flush() { _ = w.FlushError() }

// Unwrap is for http.ResponseController.
func (w *response) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// complete reports whether the handler has written as many bytes as its
// Content-Length says. A client that has all of them may disconnect before the
// handler returns.
func (w *response) complete() bool {
	length, err := strconv.ParseInt(w.Header().Get("Content-Length"), 10, 64)
	return err == nil && w.status != 0 && w.bytes == length && !w.failed
}
