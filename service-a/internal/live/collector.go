// Package live collects the calls to service-b for the people who watch the page, and
// sends them snapshots.
//
// While nobody watches, a call costs one atomic load more. The first viewer opens a
// window of the last 30 seconds (window.go), and one goroutine makes a snapshot of it
// twice a second (snapshot.go), which all viewers share. It closes soon after the last
// viewer has left.
//
// Memory is bounded: a window has at most maxPods pods, and the series of each has one
// bucket for each second.
package live

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"example.com/tandem/kit/call"
	datav1 "example.com/tandem/proto/data/v1"
	"example.com/tandem/service-a/internal/backend"
	"example.com/tandem/service-a/internal/faults"
)

const (
	// snapshotEvery is the time from one snapshot to the next.
	snapshotEvery = 500 * time.Millisecond
	// linger is how long a window stays open without viewers: a page that changes its load
	// connects again, and still needs the pods that it knew.
	linger = 5 * time.Second
	// faultsEvery is the time from one request for the pods' faults to the next.
	faultsEvery = 2 * time.Second
	// MaxViewers is how many viewers a Collector serves at once.
	MaxViewers = 100
)

// ErrTooMany is the error of Join at the limit of viewers.
var ErrTooMany = errors.New("too many people watch already: close another page, or try again later")

// Way is a way of calling service-b.
type Way struct {
	Via     string // the value of ?via=
	Backend interface {
		backend.Backend
		// Target is the configured name of service-b.
		Target() string
		// Endpoints are the addresses behind it, as the client knows them now.
		Endpoints() []call.Endpoint
	}
}

// Collector collects calls while somebody watches. Create it with New.
type Collector struct {
	ways   []Way
	faults *faults.Pods           // nil if faults are off
	open   atomic.Pointer[window] // nil while nobody watches

	mu      sync.Mutex
	viewers map[*Viewer]struct{}
	close   func()      // closes the window; nil if none is open
	closing *time.Timer // calls close; nil while somebody watches
}

// New returns a Collector of the calls over ways. If pods is not nil, snapshots have the
// faults of the pods.
func New(ways []Way, pods *faults.Pods) *Collector {
	return &Collector{ways: ways, faults: pods, viewers: map[*Viewer]struct{}{}}
}

// Backends returns the ways by the values of ?via=. Calls over them are collected.
func (c *Collector) Backends() map[string]backend.Backend {
	backends := map[string]backend.Backend{}
	for _, way := range c.ways {
		backends[way.Via] = observed{way, c}
	}
	return backends
}

// observed is a way whose calls are collected.
type observed struct {
	way       Way
	collector *Collector
}

// Get implements backend.Backend.
func (o observed) Get(ctx context.Context, key string) (*datav1.Data, backend.CallInfo, error) {
	data, info, err := o.way.Backend.Get(ctx, key)
	// A caller that has gone says nothing about service-b.
	if w := o.collector.open.Load(); w != nil && !errors.Is(ctx.Err(), context.Canceled) {
		w.record(time.Now(), o.way.Via, data.GetServedBy(), info, err)
	}
	return data, info, err
}

// Viewer receives snapshots.
type Viewer struct {
	// Snapshots has the latest snapshot, as JSON. A viewer that is too slow misses some.
	// The bytes are shared: do not change them.
	Snapshots <-chan []byte
	snapshots chan []byte
}

// Join adds a viewer, and returns ErrTooMany if there are MaxViewers. The caller must
// call leave.
func (c *Collector) Join() (v *Viewer, leave func(), err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.viewers) >= MaxViewers {
		return nil, nil, ErrTooMany
	}
	snapshots := make(chan []byte, 1)
	v = &Viewer{snapshots, snapshots}
	if c.closing != nil {
		c.closing.Stop()
		c.closing = nil
	}
	if c.close == nil {
		c.start()
	}
	c.viewers[v] = struct{}{}
	return v, func() { c.leave(v) }, nil
}

func (c *Collector) leave(v *Viewer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.viewers, v)
	if len(c.viewers) == 0 {
		c.closing = time.AfterFunc(linger, c.Close)
	}
}

// Close closes the window if nobody watches, without waiting for linger.
func (c *Collector) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.viewers) == 0 && c.close != nil {
		c.close()
		c.close = nil
	}
}

// start opens a window. The caller has locked c.mu.
func (c *Collector) start() {
	ctx, cancel := context.WithCancel(context.Background())
	w := newWindow(time.Now())
	c.open.Store(w)
	c.close = func() {
		c.open.CompareAndSwap(w, nil)
		cancel()
	}
	go c.run(ctx, w)
	if c.faults != nil {
		go c.pollFaults(ctx, w)
	}
}

// run sends a snapshot of w to all viewers, twice a second, until ctx ends.
func (c *Collector) run(ctx context.Context, w *window) {
	ticker := time.NewTicker(snapshotEvery)
	defer ticker.Stop()
	for {
		c.send(w, w.snapshot(time.Now(), c.Ways()).json())
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
	}
}

// pollFaults requests the faults of the pods until ctx ends: anybody may have set them.
func (c *Collector) pollFaults(ctx context.Context, w *window) {
	ticker := time.NewTicker(faultsEvery)
	defer ticker.Stop()
	for {
		began := time.Now()           // a fault that is set meanwhile is newer
		pods, _ := c.faults.List(ctx) // those that do not respond are not in it
		w.recordFaults(began, pods...)
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
	}
}

// FaultChanged shows a fault that has just been set, before the next request for the faults.
func (c *Collector) FaultChanged(pod faults.Status) {
	if w := c.open.Load(); w != nil {
		w.recordFaults(time.Now(), pod)
	}
}

// send gives a snapshot to all viewers of w. It replaces a snapshot that a viewer has not
// taken yet, so that it never waits for one.
func (c *Collector) send(w *window, snapshot []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.open.Load() != w {
		return // the viewers are those of another window
	}
	for v := range c.viewers {
		select {
		case <-v.snapshots:
		default:
		}
		v.snapshots <- snapshot
	}
}

// Ways returns the state of each way now.
func (c *Collector) Ways() []WayState {
	states := make([]WayState, len(c.ways))
	for i, way := range c.ways {
		endpoints := way.Backend.Endpoints()
		states[i] = WayState{Via: way.Via, Target: strings.TrimPrefix(way.Backend.Target(), "dns:///"), Addresses: make([]string, len(endpoints)), endpoints: endpoints}
		for j, e := range endpoints {
			states[i].Addresses[j] = e.Addr
		}
		states[i].BalancedBy = call.BalancerOf(states[i].Addresses)
	}
	return states
}
