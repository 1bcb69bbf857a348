// Package fault makes one instance sick on purpose: slow, failing, or not
// ready. Lessons and tests use it; it exists only where FAULTS=on, and only on
// the admin port, which no Service exposes.
package fault

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"sync/atomic"
	"time"

	"example.com/tandem/kit/problem"
)

// ErrInjected is the failure that a fault makes of a request. Nothing was done
// for the request, so it may be repeated.
var ErrInjected = errors.New("fault injected: error")

// MaxLatency is the longest latency that can be injected.
const MaxLatency = time.Minute

// Fault is what is wrong with this instance.
type Fault struct {
	// Latency is waited before each request.
	Latency time.Duration
	// ErrorRate is the share of requests that fail, 0 to 1.
	ErrorRate float64
	// NotReady makes readiness and gRPC health say no.
	NotReady bool
}

// wire is Fault as JSON, with the latency in Go's notation ("250ms").
type wire struct {
	Latency   string  `json:"latency"`
	ErrorRate float64 `json:"errorRate"`
	NotReady  bool    `json:"notReady"`
}

// Parse reads a Fault from JSON, such as
// {"latency":"250ms","errorRate":0.3,"notReady":true}; what is left out is off.
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
		return Fault{}, fmt.Errorf(`want JSON such as {"latency":"250ms","errorRate":0.3,"notReady":true}: %w`, err)
	}
	f := Fault{ErrorRate: in.ErrorRate, NotReady: in.NotReady}
	if in.Latency != "" {
		if f.Latency, err = time.ParseDuration(in.Latency); err != nil || f.Latency < 0 || f.Latency > MaxLatency {
			return Fault{}, fmt.Errorf("latency %q: want 0s to %s", in.Latency, MaxLatency)
		}
	}
	if f.ErrorRate < 0 || f.ErrorRate > 1 {
		return Fault{}, fmt.Errorf("errorRate %v: want 0 to 1", f.ErrorRate)
	}
	return f, nil
}

// Switch holds the fault of an instance. A nil Switch never does anything.
type Switch struct {
	now      atomic.Pointer[Fault]
	notReady func(bool)
}

// NewSwitch makes a switch at which nothing is set yet or, where faults are
// not allowed, nil. notReady is told when an instance is to be not ready, and
// when it may be ready again.
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
	s.now.Store(&f)
	s.notReady(f.NotReady)
}

// Strike does to one request what the fault says. It returns ErrInjected, or
// ctx's error if the caller left while it waited.
func (s *Switch) Strike(ctx context.Context) error {
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
	if f.ErrorRate > 0 && rand.Float64() < f.ErrorRate {
		return ErrInjected
	}
	return nil
}

// ServeHTTP is /faults on the admin port: GET shows the fault, PUT sets it,
// DELETE heals.
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
	// The asker may have left.
	_ = json.NewEncoder(w).Encode(wire{f.Latency.String(), f.ErrorRate, f.NotReady})
}
