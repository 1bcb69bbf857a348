// Package load calls service-a from outside the cluster, as its users do, and
// records the outcome of every request. A Generator makes requests until Stop; a
// Stream follows service-a's server-sent events. The package is for the tests of
// deploy/e2e: to compare the cost of calls, use scripts/bench.
package load

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// Spec is how much load a Generator makes.
type Spec struct {
	Transports []string // http, grpc: how service-a calls service-b
	// Callers is the maximum number of requests in flight over each transport.
	Callers int
	// Rate is the number of requests a second over each transport, whether or not
	// previous ones have ended (an open loop). If all callers are busy, a request is
	// skipped. 0 is a closed loop: each caller makes one request after the other.
	Rate float64
	// Pause is the time between two requests of a caller in a closed loop. A slow
	// cluster then gets less load. By default there is none, except after a failure.
	Pause time.Duration
	// Ramp is the time over which the callers of a closed loop start. By default all start
	// at once, and open their connections at the same moment.
	Ramp time.Duration
	// Batch is the number of calls that service-a makes for one request, of
	// /api/spread. Each batch has a connection of its own, and so may reach another pod
	// of service-a. By default a request is one call, of /api/data, and connections are
	// kept alive as by a gateway.
	Batch int
	// Timeout of a request of /api/data. Give it more than service-a gives its own
	// call, so that service-a can report what failed. It is 20 s for a batch.
	Timeout time.Duration
}

// pauseAfterFailure keeps callers whose requests fail at once from making far more
// of them than callers whose requests succeed.
const pauseAfterFailure = 200 * time.Millisecond

// NoResponse is the class of requests to which service-a did not respond.
const NoResponse = "no response from service-a"

// Request is the outcome of one request.
type Request struct {
	End   time.Duration // since the start of the Generator
	Took  time.Duration
	Class string  // of the failure; empty if the request succeeded
	Batch *Spread // of a batch that succeeded
}

// Generator makes requests. Its methods may be called while it runs.
type Generator struct {
	url     string
	spec    Spec
	client  *http.Client
	start   time.Time
	stop    func()
	stopped chan struct{}
	workers sync.WaitGroup
	skipped atomic.Int64

	mu       sync.Mutex
	requests map[string][]Request // by transport, in order of their end
	examples map[string]string    // of failures, by class
	stalled  time.Duration
}

// Start starts a Generator. url is that of service-a.
func Start(url string, spec Spec) *Generator {
	connections := spec.Callers * len(spec.Transports)
	g := &Generator{
		url:  url,
		spec: spec,
		client: &http.Client{
			Timeout: spec.Timeout,
			Transport: &http.Transport{
				DialContext:         (&net.Dialer{Timeout: 2 * time.Second}).DialContext,
				MaxIdleConnsPerHost: connections,
				MaxConnsPerHost:     connections,
				IdleConnTimeout:     30 * time.Second,
			},
		},
		start:    time.Now(),
		stopped:  make(chan struct{}),
		requests: map[string][]Request{},
		examples: map[string]string{},
	}
	g.stop = sync.OnceFunc(func() { close(g.stopped) })
	for _, via := range spec.Transports {
		if spec.Rate > 0 {
			g.workers.Go(func() { g.openLoop(via) })
			continue
		}
		for i := range spec.Callers {
			g.workers.Go(func() { g.closedLoop(via, spec.Ramp*time.Duration(i)/time.Duration(spec.Callers)) })
		}
	}
	g.workers.Go(g.watchStalls)
	return g
}

// Stop ends the load and waits for the requests in flight. It may be called again.
func (g *Generator) Stop() {
	g.stop()
	g.workers.Wait()
	g.client.CloseIdleConnections()
}

func (g *Generator) closedLoop(via string, delay time.Duration) {
	select {
	case <-g.stopped:
	case <-time.After(delay):
	}
	for g.running() {
		pause := g.spec.Pause
		if !g.request(via) && pause == 0 {
			pause = pauseAfterFailure
		}
		if pause == 0 {
			continue
		}
		select {
		case <-g.stopped:
		case <-time.After(pause):
		}
	}
}

func (g *Generator) openLoop(via string) {
	free := make(chan struct{}, g.spec.Callers)
	var inFlight sync.WaitGroup
	defer inFlight.Wait()
	start := time.Now()
	for made := 0; g.running(); time.Sleep(time.Millisecond) {
		for due := int(time.Since(start).Seconds() * g.spec.Rate); made < due; made++ {
			select {
			case free <- struct{}{}:
				inFlight.Go(func() {
					g.request(via)
					<-free
				})
			default:
				g.skipped.Add(1)
			}
		}
	}
}

func (g *Generator) running() bool {
	select {
	case <-g.stopped:
		return false
	default:
		return true
	}
}

// request makes and records one request, and reports whether it succeeded.
func (g *Generator) request(via string) bool {
	start := time.Now()
	var r Request
	var example string
	if g.spec.Batch > 0 {
		r.Batch, r.Class, example = g.batch(via)
	} else {
		r.Class, example = g.call(via)
	}
	end := time.Now()
	r.End, r.Took = end.Sub(g.start), end.Sub(start)

	g.mu.Lock()
	defer g.mu.Unlock()
	g.requests[via] = append(g.requests[via], r)
	if r.Class != "" && g.examples[r.Class] == "" {
		g.examples[r.Class] = fmt.Sprintf("after %s: %s", r.End.Round(time.Millisecond), example[:min(len(example), 600)])
	}
	return r.Class == ""
}

func (g *Generator) batch(via string) (*Spread, string, string) {
	result, err := GetSpread(g.url, via, g.spec.Batch)
	if err != nil {
		return nil, "failed batch", err.Error()
	}
	return &result, "", ""
}

// call makes one request of /api/data. If it fails, call returns the class of the
// failure and an example.
func (g *Generator) call(via string) (class, example string) {
	resp, err := get(g.client, g.url+"/api/data?via="+via)
	if err != nil {
		return NoResponse, err.Error()
	}
	defer resp.Body.Close() //nolint:errcheck // read to its end
	body, err := io.ReadAll(resp.Body)
	switch {
	case err != nil:
		return NoResponse, err.Error()
	case resp.StatusCode == http.StatusOK:
		return "", ""
	}
	var problem struct{ Class string }
	if err := json.Unmarshal(body, &problem); err != nil || problem.Class == "" {
		return fmt.Sprintf("status %d", resp.StatusCode), string(body)
	}
	return fmt.Sprintf("%s (%d)", problem.Class, resp.StatusCode), string(body)
}

// watchStalls measures how late this process wakes up on a busy machine.
func (g *Generator) watchStalls() {
	const interval = 10 * time.Millisecond
	for g.running() {
		start := time.Now()
		time.Sleep(interval)
		late := time.Since(start) - interval
		g.mu.Lock()
		g.stalled = max(g.stalled, late)
		g.mu.Unlock()
	}
}

// Spread is service-a's response to /api/spread.
type Spread struct {
	N, Attempts int
	Pods        map[string]int // successful calls by pod of service-b
	Errors      map[string]int // failed calls by class
}

// oneShot opens a connection for each request. A connection that is kept alive
// would stay on one pod of service-a.
var oneShot = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 20 * time.Second}

// GetSpread lets the service-a at url call service-b n times.
func GetSpread(url, via string, n int) (Spread, error) {
	var result Spread
	resp, err := get(oneShot, fmt.Sprintf("%s/api/spread?via=%s&n=%d", url, via, n))
	if err != nil {
		return result, err
	}
	defer resp.Body.Close() //nolint:errcheck // read to its end
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return result, err
	}
	if resp.StatusCode != http.StatusOK {
		return result, fmt.Errorf("status %d: %s", resp.StatusCode, body)
	}
	return result, json.Unmarshal(body, &result)
}

// get makes a GET request, which only the client's timeout ends early.
func get(client *http.Client, url string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(context.Background(), http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	return client.Do(req)
}
