package page

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// servePrefix serves a URL below a path, which it cuts off, and returns its own URL.
func servePrefix(t *testing.T, prefix, target string) string {
	t.Helper()
	to, err := url.Parse(target)
	require.NoError(t, err)
	proxy := httputil.NewSingleHostReverseProxy(to)
	proxy.FlushInterval = -1 // events pass one by one
	server := httptest.NewServer(http.StripPrefix(prefix[:len(prefix)-1], proxy))
	t.Cleanup(func() {
		server.CloseClientConnections() // the stream of events
		server.Close()
	})
	return server.URL
}

// snapshots serves the page's real files, and snapshots of pods and calls that it makes up.
type snapshots struct {
	url  string
	sent atomic.Int64
}

func serveSnapshots(t *testing.T, pods int) *snapshots {
	t.Helper()
	s := &snapshots{}
	mux := http.NewServeMux()
	files := http.FileServer(http.Dir(static))
	mux.Handle("GET /", files)
	mux.Handle("GET /static/", http.StripPrefix("/static/", files))
	mux.HandleFunc("GET /api/live", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = fmt.Fprint(w, `event: hello`+"\n"+`data: {"servedBy":{"pod":"service-a-1"},"windowSeconds":30,"faults":true,"ways":[{"via":"http"},{"via":"grpc"}]}`+"\n\n")
		// Faster than service-a, which sends two snapshots a second.
		for tick := time.NewTicker(50 * time.Millisecond); r.Context().Err() == nil; <-tick.C {
			body, err := json.Marshal(snapshotOf(pods, int(s.sent.Add(1))))
			if err != nil {
				panic(err) // the values are all of this file
			}
			if _, err := fmt.Fprintf(w, "event: snapshot\ndata: %s\n\n", body); err != nil {
				return
			}
			w.(http.Flusher).Flush()
		}
	})
	server := httptest.NewServer(mux)
	t.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
	})
	s.url = server.URL
	return s
}

// await waits until n snapshots have been sent.
func (s *snapshots) await(t *testing.T, n int64) {
	t.Helper()
	require.Eventually(t, func() bool { return s.sent.Load() >= n }, 4*timeout, 50*time.Millisecond)
}

type object = map[string]any

// snapshotOf returns the tick-th snapshot: all pods with calls over both transports.
func snapshotOf(pods, tick int) object {
	now := time.Now().UnixMilli()
	var states, calls []object
	var addresses []string
	for i := range pods {
		pod, ip := fmt.Sprintf("service-b-6d4cb77f9c-x%04d", i), fmt.Sprintf("10.244.%d.%d", i%6, i+2)
		addresses = append(addresses, ip+":9090")
		figures := object{"count": tick + i, "rate": 3.5, "p50": 1.2, "p99": 9.5, "errors": object{}}
		states = append(states, object{
			"pod": pod, "node": fmt.Sprintf("node-%d", i%6), "zone": fmt.Sprintf("zone-%d", i%3), "ip": ip, "state": "ready", "seen": now,
			"via": object{"http": figures, "grpc": figures},
		})
	}
	for i := range 24 {
		pod := states[(tick*7+i)%pods]
		calls = append(calls, object{
			"id": tick*24 + i, "at": now, "via": []string{"http", "grpc"}[i%2], "pod": pod["pod"], "class": "ok",
			"call": object{"target": "service-b", "addresses": addresses[:min(pods, 16)], "attempts": 1, "durationMs": 1.5, "tries": []object{}},
		})
	}
	return object{
		"at": now, "pods": states, "unserved": object{}, "calls": calls, "more": 1000,
		"ways": []object{
			{"via": "http", "target": "http://service-b", "addresses": []string{"10.96.0.9:80"}, "balancedBy": "network"},
			{"via": "grpc", "target": "dns:///service-b-headless:9090", "addresses": addresses, "balancedBy": "client"},
		},
	}
}
