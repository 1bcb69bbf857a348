package httpserver

import (
	"errors"
	"net/http"
	"strconv"
)

// response notes what a handler responds.
type response struct {
	http.ResponseWriter
	// closes decides, when the header is written, whether the connection closes
	// after this response. A request may have begun long before the drain.
	closes func() bool
	status int // 0 until the header is written
	bytes  int64
	failed bool // a write failed
}

func (w *response) WriteHeader(status int) {
	if w.status == 0 && (status >= 200 || status == http.StatusSwitchingProtocols) {
		w.status = status
		if w.closes() {
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

// FlushError sends what was written so far (see http.ResponseController).
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

// complete reports whether the handler has written all that it announced. A
// client that has all of it may leave before the handler returns.
func (w *response) complete() bool {
	length, err := strconv.ParseInt(w.Header().Get("Content-Length"), 10, 64)
	return err == nil && w.status != 0 && w.bytes == length && !w.failed
}
