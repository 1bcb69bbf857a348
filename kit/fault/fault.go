// Package fault makes one instance sick on purpose: slow, short of CPU, failing,
// or not ready. Lessons and tests use it. It exists only where FAULTS=on, and
// listens on loopback only: an operator reaches it by kubectl port-forward or by
// the service's subcommand fault, and a neighbour in the network does not.
package fault

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"example.com/tandem/kit/problem"
)

// ErrInjected is the failure that a fault makes of a request. Nothing was done
// for the request, so it may be retried.
var ErrInjected = errors.New("fault injected: error")

// MaxLatency is the longest latency that can be injected, and the most CPU time.
const MaxLatency = time.Minute

// Fault is what is wrong with this instance.
type Fault struct {
	// Latency is waited before each request.
	Latency time.Duration
	// CPU is the time of one CPU that each request costs on top: about as much
	// work as an idle CPU does in it, however busy this one is.
	CPU time.Duration
	// ErrorRate is the share of requests that fail, 0 to 1.
	ErrorRate float64
	// NotReady makes readiness and gRPC health say no.
	NotReady bool
}

// wire is Fault as JSON, with times in Go's notation ("250ms").
type wire struct {
	Latency   string  `json:"latency"`
	CPU       string  `json:"cpu"`
	ErrorRate float64 `json:"errorRate"`
	NotReady  bool    `json:"notReady"`
}

// Example is a Fault as JSON, for usage texts.
const Example = `{"latency":"250ms","cpu":"5ms","errorRate":0.3,"notReady":true}`

// Parse reads a Fault from JSON, such as
// {"latency":"250ms","cpu":"5ms","errorRate":0.3,"notReady":true}; what is left
// out is off.
func Parse(r io.Reader) (Fault, error) {
	var in wire
	dec := json.NewDecoder(r)
	dec.DisallowUnknownFields()
	err := dec.Decode(&in)
	if err == nil {
		if _, end := dec.Token(); !errors.Is(end, io.EOF) {
			err = errors.New("there is more after it")
		}
	}
	if err != nil {
		return Fault{}, fmt.Errorf("want JSON such as %s: %w", Example, err)
	}
	f := Fault{ErrorRate: in.ErrorRate, NotReady: in.NotReady}
	if f.Latency, err = parseTime("latency", in.Latency); err != nil {
		return Fault{}, err
	}
	if f.CPU, err = parseTime("cpu", in.CPU); err != nil {
		return Fault{}, err
	}
	if f.ErrorRate < 0 || f.ErrorRate > 1 {
		return Fault{}, fmt.Errorf("errorRate %v: want 0 to 1", f.ErrorRate)
	}
	return f, nil
}

func parseTime(name, in string) (time.Duration, error) {
	if in == "" {
		return 0, nil
	}
	d, err := time.ParseDuration(in)
	if err != nil || d < 0 || d > MaxLatency {
		return 0, fmt.Errorf("%s %q: want 0s to %s", name, in, MaxLatency)
	}
	return d, nil
}

// UnmarshalText sets f as Parse would, so that a setting can hold a Fault.
func (f *Fault) UnmarshalText(text []byte) (err error) {
	*f, err = Parse(bytes.NewReader(text))
	return err
}

// Switch holds the fault of an instance. A nil Switch never does anything.
type Switch struct {
	now      atomic.Pointer[Fault]
	notReady func(bool)
}

// NewSwitch returns a switch at which nothing is set yet or, if faults are not
// allowed, nil. The switch calls notReady with true when the instance is to be not
// ready, and with false when it may be ready again.
func NewSwitch(allowed bool, notReady func(bool)) *Switch {
	if !allowed {
		return nil
	}
	s := &Switch{notReady: notReady}
	s.now.Store(&Fault{})
	return s
}

// Set puts a fault in place of the one before; the zero Fault heals.
func (s *Switch) Set(f Fault) {
	if s == nil {
		return
	}
	s.now.Store(&f)
	s.notReady(f.NotReady)
}

// Inject does to one request what the fault says. It returns ErrInjected, or
// ctx's error if the caller left meanwhile.
func (s *Switch) Inject(ctx context.Context) error {
	if s == nil {
		return nil
	}
	f := s.now.Load()
	if f.Latency > 0 {
		timer := time.NewTimer(f.Latency)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if f.CPU > 0 {
		if err := toil(ctx, f.CPU); err != nil {
			return err
		}
	}
	if f.ErrorRate > 0 && rand.Float64() < f.ErrorRate {
		return ErrInjected
	}
	return nil
}

// stint is some work of no use: some 20 to 200 microseconds of it.
func stint() { sha256.Sum256(zeros[:]) }

var zeros [32 << 10]byte

// stintTime is how long a stint takes where nothing disturbs it: the fastest of
// some, for who measures all would find a busy CPU to be a slow one.
var stintTime = sync.OnceValue(func() time.Duration {
	fastest := time.Duration(math.MaxInt64)
	for range 50 {
		start := time.Now()
		stint()
		fastest = min(fastest, time.Since(start))
	}
	return max(fastest, time.Microsecond)
})

// toil uses up CPU time, unless the caller leaves.
func toil(ctx context.Context, cpu time.Duration) error {
	for range (cpu + stintTime() - 1) / stintTime() {
		if err := ctx.Err(); err != nil {
			return err
		}
		stint()
	}
	return nil
}

// ServeHTTP serves /faults: GET shows the fault, PUT sets it, DELETE heals.
func (s *Switch) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch r.Method {
	case http.MethodGet:
	case http.MethodPut:
		f, err := Parse(http.MaxBytesReader(w, r.Body, 4096))
		if err != nil {
			problem.Error(w, http.StatusBadRequest, err.Error())
			return
		}
		s.Set(f)
	case http.MethodDelete:
		s.Set(Fault{})
	default:
		w.Header().Set("Allow", "GET, PUT, DELETE")
		problem.Error(w, http.StatusMethodNotAllowed, "use GET, PUT or DELETE")
		return
	}
	f := s.now.Load()
	w.Header().Set("Content-Type", "application/json")
	// The client may have left.
	_ = json.NewEncoder(w).Encode(wire{f.Latency.String(), f.CPU.String(), f.ErrorRate, f.NotReady})
}
