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

// snapshots serves the page's real files, and snapshots that a test makes up.
type snapshots struct {
	url      string
	sent     atomic.Int64
	servedBy atomic.Value // the name of service-a's pod
}

// serveSnapshots serves what next returns for 1, 2, 3 and so on, as fast as next returns and
// the page reads.
func serveSnapshots(t *testing.T, next func(n int) object) *snapshots {
	t.Helper()
	s := &snapshots{}
	s.servedBy.Store("service-a-1")
	mux := http.NewServeMux()
	files := http.FileServer(http.Dir(static))
	mux.Handle("GET /", files)
	mux.Handle("GET /static/", http.StripPrefix("/static/", files))
	mux.HandleFunc("GET /api/live", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = fmt.Fprintf(w, `event: hello`+"\n"+`data: {"servedBy":{"pod":%q},"windowSeconds":30,"faults":true,"ways":[{"via":"http"},{"via":"grpc"}]}`+"\n\n", s.servedBy.Load())
		w.(http.Flusher).Flush()
		for r.Context().Err() == nil {
			body, err := json.Marshal(next(int(s.sent.Add(1))))
			if err != nil {
				panic(err) // the values are all of this package
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

// busy returns snapshots of some pods that never change, ten times as often as service-a.
func busy(pods int) func(n int) object {
	return func(n int) object {
		time.Sleep(50 * time.Millisecond)
		return snapshotOf(0, pods, n)
	}
}

type object = map[string]any

// snapshotOf returns the n-th snapshot: pods from first on, with calls over both transports.
func snapshotOf(first, pods, n int) object {
	now := time.Now().UnixMilli()
	var states, calls []object
	var addresses []string
	for i := first; i < first+pods; i++ {
		ip := fmt.Sprintf("10.244.%d.%d", i/200, i%200+2)
		addresses = append(addresses, ip+":9090")
		figures := object{"count": n + i, "rate": 3.5, "p50": 1.2, "p99": 9.5, "errors": object{}}
		states = append(states, object{
			"pod": fmt.Sprintf("service-b-6d4cb77f9c-x%04d", i), "node": fmt.Sprintf("node-%d", i%6), "zone": fmt.Sprintf("zone-%d", i%3), "ip": ip, "state": "ready", "seen": now,
			"via": object{"http": figures, "grpc": figures},
		})
	}
	for i := range 24 {
		pod := states[(n*7+i)%pods]
		calls = append(calls, callOf(n*24+i, []string{"http", "grpc"}[i%2], pod["pod"].(string), pod["ip"].(string)+":9090", "ok"))
	}
	return object{
		"at": now, "pods": states, "unserved": object{}, "calls": calls, "more": 1000,
		"ways": []object{
			{"via": "http", "target": "http://service-b", "addresses": []string{"10.96.0.9:80"}, "balancedBy": "network"},
			{"via": "grpc", "target": "dns:///service-b-headless:9090", "addresses": addresses, "balancedBy": "client"},
		},
	}
}

// callOf returns a call with one attempt, whose trace id has the call's id.
func callOf(id int, via, pod, peer, class string) object {
	return object{
		"id": id, "at": time.Now().UnixMilli(), "via": via, "pod": pod, "class": class,
		"call": object{
			"target": "service-b", "addresses": []string{peer}, "peer": peer, "attempts": 1, "durationMs": 1.5, "traceId": fmt.Sprintf("%032x", id),
			"tries": []object{{"peer": peer, "durationMs": 1.5, "class": class, "pod": pod}},
		},
	}
}
