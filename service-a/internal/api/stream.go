package api

import (
	"fmt"
	"net/http"
	"time"

	"go.opentelemetry.io/otel/trace"

	"example.com/tandem/kit/problem"
	"example.com/tandem/service-a/internal/backend"
)

// streamWriteTimeout is how long a client may take to take one event.
const streamWriteTimeout = 10 * time.Second

// Stream is GET /api/stream?key=&interval=: server-sent events, relayed from
// service-b's gRPC stream. When an instance leaves, another takes over; while
// there is none, events of type problem say so.
func Stream(b backend.Watcher) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		query := r.URL.Query()
		key, err := keyOf(query)
		if err != nil {
			problem.Error(w, http.StatusBadRequest, err.Error())
			return
		}
		interval, err := intervalOf(query)
		if err != nil {
			problem.Error(w, http.StatusBadRequest, err.Error())
			return
		}
		w.Header().Set("Content-Type", "text/event-stream")
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("X-Accel-Buffering", "no") // ingresses made of nginx would hold events back
		events := eventWriter{w, http.NewResponseController(w)}
		// When we drain, the browser is to be back, elsewhere, in a second.
		if events.send("retry: 1000\n\n") != nil {
			return
		}
		how := backend.CallInfo{Transport: "grpc", TraceID: trace.SpanContextFromContext(r.Context()).TraceID().String()}
		for m, err := range b.Watch(r.Context(), key, interval) {
			if err != nil {
				err = events.send(fmt.Sprintf("event: problem\ndata: %s\n", problemOf(err, how).JSON()))
			} else {
				err = events.send(fmt.Sprintf("event: data\nid: %d\ndata: %s\n\n", m.GetSequence(), message(m)))
			}
			if err != nil {
				return // the client has left
			}
		}
	}
}

type eventWriter struct {
	w    http.ResponseWriter
	conn *http.ResponseController
}

func (e eventWriter) send(text string) error {
	if err := e.conn.SetWriteDeadline(time.Now().Add(streamWriteTimeout)); err != nil {
		return err
	}
	if _, err := e.w.Write([]byte(text)); err != nil {
		return err
	}
	return e.conn.Flush()
}
