// Package fault makes one instance fail on purpose: slow, short of CPU, failing or
// not ready. Lessons and tests use it. The switch exists only with FAULTS=on. It is
// served on loopback: an operator reaches it with the subcommand fault or with
// kubectl port-forward. A service may also serve it to other pods (Remote).
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

	"example.com/tandem/kit/instance"
	"example.com/tandem/kit/problem"
)

// Path is where the switch is served.
const Path = "/faults"

// ErrInjected is the error of a request that a fault makes fail. The request was not
// processed, so it may be retried.
var ErrInjected = errors.New("fault injected: error")

// MaxLatency is the upper limit of Fault.Latency and Fault.CPU.
const MaxLatency = time.Minute

// Example is a Fault as JSON, for usage texts.
const Example = `{"latency":"250ms","cpu":"5ms","errorRate":0.3,"notReady":true}`

// Fault says how this instance fails. The zero Fault is none.
type Fault struct {
	// Latency is the delay before each request is processed.
	Latency time.Duration
	// CPU is the CPU time that each request takes in addition: as much work as an
	// otherwise idle CPU does in this time. On a busy CPU it takes longer.
	CPU time.Duration
	// ErrorRate is the share of requests that fail, 0 to 1.
	ErrorRate float64
	// NotReady makes /readyz and gRPC health report that the instance is not ready.
	NotReady bool
}

// Switch holds the fault of an instance. It is safe for concurrent use. A nil Switch
// never injects a fault.
type Switch struct {
	current     atomic.Pointer[Fault]
	setting     sync.Mutex // by Set
	setNotReady func(bool)
}

// NewSwitch returns a switch without a fault, or nil if faults are not allowed. Set
// passes Fault.NotReady to setNotReady.
func NewSwitch(allowed bool, setNotReady func(bool)) *Switch {
	if !allowed {
		return nil
	}
	s := &Switch{setNotReady: setNotReady}
	s.current.Store(&Fault{})
	return s
}

// ServeHTTP serves /faults: GET shows the fault, PUT sets it, DELETE removes it.
func (s *Switch) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if s.change(w, r) {
		writeJSON(w, s.wire())
	}
}

// Status is the response of Remote.
type Status struct {
	Instance instance.Instance `json:"instance"` // the instance that responds
	Fault    json.RawMessage   `json:"fault"`    // as ServeHTTP shows it
}

// Remote serves /faults to other pods, which may reach another instance than they mean, as
// an address may have a new owner. It refuses requests whose parameter pod does not name
// this instance, with 421, except GET without the parameter.
func (s *Switch) Remote(me instance.Instance) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		query := r.URL.Query()
		if pod := query.Get("pod"); pod != me.Pod && (r.Method != http.MethodGet || query.Has("pod")) {
			problem.Error(w, http.StatusMisdirectedRequest, fmt.Sprintf("this is pod %s, not %.253q", me.Pod, pod))
			return
		}
		if s.change(w, r) {
			fault, _ := json.Marshal(s.wire()) // cannot fail: only strings, a finite number and a bool
			writeJSON(w, Status{Instance: me, Fault: fault})
		}
	})
}

// change changes the fault as the method of a request says. If the request is invalid, it
// responds with the problem, and returns false.
func (s *Switch) change(w http.ResponseWriter, r *http.Request) (ok bool) {
	switch r.Method {
	case http.MethodGet:
	case http.MethodPut:
		f, err := Parse(http.MaxBytesReader(w, r.Body, 4096))
		if err != nil {
			problem.Error(w, http.StatusBadRequest, err.Error())
			return false
		}
		s.Set(f)
	case http.MethodDelete:
		s.Set(Fault{})
	default:
		w.Header().Set("Allow", "GET, PUT, DELETE")
		problem.Error(w, http.StatusMethodNotAllowed, "use GET, PUT or DELETE")
		return false
	}
	return true
}

// wire returns the present fault as JSON shows it.
func (s *Switch) wire() wire {
	f := s.current.Load()
	return wire{f.Latency.String(), f.CPU.String(), f.ErrorRate, f.NotReady}
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // the client may have disconnected
}

// Set replaces the fault; the zero Fault removes it.
func (s *Switch) Set(f Fault) {
	if s == nil {
		return
	}
	s.setting.Lock()
	defer s.setting.Unlock()
	s.current.Store(&f)
	s.setNotReady(f.NotReady)
}

// Inject applies the fault to one request: it waits, uses CPU time, and returns
// ErrInjected if the request is to fail. It returns ctx's error if ctx ends first.
func (s *Switch) Inject(ctx context.Context) error {
	if s == nil {
		return nil
	}
	f := s.current.Load()
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
		if err := useCPU(ctx, f.CPU); err != nil {
			return err
		}
	}
	if f.ErrorRate > 0 && rand.Float64() < f.ErrorRate {
		return ErrInjected
	}
	return nil
}

// useCPU does as much work as takes d on an idle CPU. It returns ctx's error if ctx
// ends first.
func useCPU(ctx context.Context, d time.Duration) error {
	for range (d + unitTime() - 1) / unitTime() {
		if err := ctx.Err(); err != nil {
			return err
		}
		workUnit()
	}
	return nil
}

// unitTime returns how long a workUnit takes on an idle CPU: the minimum of 50 runs.
// A mean would include other load.
var unitTime = sync.OnceValue(func() time.Duration {
	fastest := time.Duration(math.MaxInt64)
	for range 50 {
		start := time.Now()
		workUnit()
		fastest = min(fastest, time.Since(start))
	}
	return max(fastest, time.Microsecond)
})

// workUnit is work without effect, which takes about 20 to 200 microseconds.
func workUnit() { sha256.Sum256(zeros[:]) }

var zeros [32 << 10]byte

// UnmarshalText sets f as Parse does, so that an environment variable can hold a Fault.
func (f *Fault) UnmarshalText(text []byte) (err error) {
	*f, err = Parse(bytes.NewReader(text))
	return err
}

// wire is Fault as JSON. Durations are in Go's notation ("250ms").
type wire struct {
	Latency   string  `json:"latency"`
	CPU       string  `json:"cpu"`
	ErrorRate float64 `json:"errorRate"`
	NotReady  bool    `json:"notReady"`
}

// Parse reads a Fault from JSON such as Example. A field that is absent is off. The
// error of an invalid value says what would be valid.
func Parse(r io.Reader) (Fault, error) {
	var in wire
	dec := json.NewDecoder(r)
	dec.DisallowUnknownFields()
	err := dec.Decode(&in)
	if err == nil {
		if _, end := dec.Token(); !errors.Is(end, io.EOF) {
			err = errors.New("unexpected text after the JSON value")
		}
	}
	if err != nil {
		return Fault{}, fmt.Errorf("want JSON such as %s: %w", Example, err)
	}
	f := Fault{ErrorRate: in.ErrorRate, NotReady: in.NotReady}
	if f.Latency, err = parseDuration("latency", in.Latency); err != nil {
		return Fault{}, err
	}
	if f.CPU, err = parseDuration("cpu", in.CPU); err != nil {
		return Fault{}, err
	}
	if f.ErrorRate < 0 || f.ErrorRate > 1 {
		return Fault{}, fmt.Errorf("errorRate %v: want 0 to 1", f.ErrorRate)
	}
	return f, nil
}

func parseDuration(name, in string) (time.Duration, error) {
	if in == "" {
		return 0, nil
	}
	d, err := time.ParseDuration(in)
	if err != nil || d < 0 || d > MaxLatency {
		return 0, fmt.Errorf("%s %q: want 0s to %s", name, in, MaxLatency)
	}
	return d, nil
}
