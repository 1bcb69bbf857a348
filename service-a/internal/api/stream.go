package api

import (
	"fmt"
	"net/http"
	"time"

	"go.opentelemetry.io/otel/trace"

	"example.com/tandem/kit/problem"
	datav1 "example.com/tandem/proto/data/v1"
	"example.com/tandem/service-a/internal/backend"
)

// streamWriteTimeout bounds the write of one event to the client.
const streamWriteTimeout = 10 * time.Second

// Stream handles GET /api/stream?key=&interval=: it relays service-b's gRPC stream
// as server-sent events. When an instance of service-b ends its stream, events
// continue from another instance. A failure to open a stream is an event of type
// problem.
func Stream(b backend.Watcher) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		query := r.URL.Query()
		key, err := datav1.KeyFromQuery(query)
		if err != nil {
			problem.Error(w, http.StatusBadRequest, err.Error())
			return
		}
		interval, err := parseInterval(query)
		if err != nil {
			problem.Error(w, http.StatusBadRequest, err.Error())
			return
		}
		events := newEventWriter(w)
		// When this instance drains, browsers reconnect to another after 1000 ms.
		if events.send("retry: 1000\n\n") != nil {
			return
		}
		info := backend.CallInfo{Transport: "grpc", TraceID: trace.SpanContextFromContext(r.Context()).TraceID().String()}
		for m, err := range b.Watch(r.Context(), key, interval) {
			if err != nil {
				// One line break fewer than below: JSON returns a text that ends with one.
				err = events.send(fmt.Sprintf("event: problem\ndata: %s\n", callProblem(err, info).JSON()))
			} else {
				err = events.send(fmt.Sprintf("event: data\nid: %d\ndata: %s\n\n", m.GetSequence(), protoJSON(m)))
			}
			if err != nil {
				return // the client has disconnected
			}
		}
	}
}

// eventWriter sends events, each within streamWriteTimeout.
type eventWriter struct {
	w    http.ResponseWriter
	conn *http.ResponseController
}

func newEventWriter(w http.ResponseWriter) eventWriter {
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Accel-Buffering", "no") // nginx ingresses would buffer events
	return eventWriter{w, http.NewResponseController(w)}
}

func (e eventWriter) send(texts ...string) error {
	if err := e.conn.SetWriteDeadline(time.Now().Add(streamWriteTimeout)); err != nil {
		return err
	}
	for _, text := range texts {
		if _, err := e.w.Write([]byte(text)); err != nil {
			return err
		}
	}
	return e.conn.Flush()
}
