package api

import (
	"encoding/json"
	"fmt"
	"net/http"

	"example.com/tandem/kit/instance"
	"example.com/tandem/kit/problem"
	"example.com/tandem/service-a/internal/live"
)

// Hello is the first event of /api/live.
type Hello struct {
	ServedBy      instance.Instance `json:"servedBy"`
	WindowSeconds int               `json:"windowSeconds"`
	Faults        bool              `json:"faults"`   // whether /api/faults exists
	TraceURL      string            `json:"traceUrl"` // with {traceId} in it; empty if there is no trace UI
	Ways          []live.WayState   `json:"ways"`
}

// Live handles GET /api/live: it sends snapshots of the calls to service-b as server-sent
// events, which begin with hello.
func Live(c *live.Collector, hello Hello) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		viewer, leave, err := c.Join()
		if err != nil {
			problem.Write(w, problem.Problem{Status: http.StatusServiceUnavailable, Detail: err.Error(), RetryAfter: 10})
			return
		}
		defer leave()
		events := newEventWriter(w)
		hello := hello
		hello.WindowSeconds, hello.Ways = live.WindowSeconds, c.Ways()
		first, err := json.Marshal(hello)
		if err != nil || events.send(fmt.Sprintf("retry: 1000\n\nevent: hello\ndata: %s\n\n", first)) != nil {
			return
		}
		for {
			select {
			case snapshot := <-viewer.Snapshots:
				if events.send("event: snapshot\ndata: ", string(snapshot), "\n\n") != nil {
					return // the viewer has gone, or has read nothing for streamWriteTimeout
				}
			case <-r.Context().Done():
				return
			}
		}
	}
}
