package live

import (
	"bytes"
	"cmp"
	"encoding/json"
	"maps"
	"math"
	"net"
	"slices"
	"time"

	"example.com/tandem/kit/call"
	"example.com/tandem/kit/fault"
	"example.com/tandem/service-a/internal/backend"
)

const (
	// maxAddresses is how many addresses the description of a call has in a snapshot. The way
	// that it took has all of them.
	maxAddresses = 16
	// maxDetail is the length of the longest error text in a snapshot, in bytes.
	maxDetail = 400
)

// snapshot is what viewers see of a window.
type snapshot struct {
	At       int64                            `json:"at"` // Unix time in milliseconds, as all times here
	Ways     []WayState                       `json:"ways"`
	Pods     []podState                       `json:"pods"`
	Unserved map[string]map[call.Class]uint32 `json:"unserved"`
	Calls    []callState                      `json:"calls"`
	More     int                              `json:"more"`
}

// WayState is the state of a way of calling service-b.
type WayState struct {
	Via        string        `json:"via"`
	Target     string        `json:"target"`
	Addresses  []string      `json:"addresses"`
	BalancedBy call.Balancer `json:"balancedBy"`
	endpoints  []call.Endpoint
}

// podState is a pod of service-b, or an address from which no pod has responded yet.
type podState struct {
	Pod     string                 `json:"pod"`
	Node    string                 `json:"node"`
	Zone    string                 `json:"zone"`
	IP      string                 `json:"ip"`
	Version string                 `json:"version"`
	State   state                  `json:"state"`
	Fault   *faultState            `json:"fault"` // null if none is set
	Seen    int64                  `json:"seen"`
	Via     map[string]seriesState `json:"via"`
}

// state says whether a pod gets calls.
type state string

const (
	ready    state = "ready"
	notReady state = "notReady" // it exists, but clients send it no calls
	gone     state = "gone"     // no name has its address any more
)

// faultState is a fault as the fault switch shows it.
type faultState struct {
	Latency   string  `json:"latency"`
	CPU       string  `json:"cpu"`
	ErrorRate float64 `json:"errorRate"`
	NotReady  bool    `json:"notReady"`
}

// seriesState is what is known of the calls to a pod over one way.
type seriesState struct {
	Count  uint32                `json:"count"`
	Rate   float64               `json:"rate"` // calls a second, over the last rateSeconds
	P50    float64               `json:"p50"`
	P99    float64               `json:"p99"`
	Errors map[call.Class]uint32 `json:"errors"`
}

// callState is one call.
type callState struct {
	ID     uint64     `json:"id"`
	At     int64      `json:"at"`
	Via    string     `json:"via"`
	Pod    string     `json:"pod"`
	Class  call.Class `json:"class"`
	Detail string     `json:"detail"`
	Call   callInfo   `json:"call"`
}

// callInfo is the description of a call, in which each attempt has the pod that it reached.
type callInfo struct {
	backend.CallInfo
	Tries []try `json:"tries"`
}

type try struct {
	call.Try
	Pod string `json:"pod"`
}

func (s snapshot) json() []byte {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if enc.Encode(s) != nil {
		return nil // cannot happen: all values are strings, finite numbers, and JSON
	}
	return bytes.TrimSpace(buf.Bytes())
}

// snapshot returns the state of w, and drops the pods that are no longer shown.
func (w *window) snapshot(now time.Time, ways []WayState) snapshot {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.advance(now)
	s := snapshot{At: now.UnixMilli(), Ways: ways, Unserved: map[string]map[call.Class]uint32{}}
	s.Pods = w.podStates(now, ways)
	for via, series := range w.unserved {
		if errs := series.total.errors(); len(errs) > 0 {
			s.Unserved[via] = errs
		}
	}
	s.Calls, s.More = w.callStates()
	return s
}

// podStates returns the pods, and the addresses of unknown ones, by name and address.
func (w *window) podStates(now time.Time, ways []WayState) []podState {
	listed, complete := w.listedIPs(ways)
	states := make([]podState, 0, len(w.pods))
	for _, name := range slices.Sorted(maps.Keys(w.pods)) {
		p := w.pods[name]
		state := w.stateOf(p, now, listed, complete)
		calls, n := w.seriesStates(now, p.series)
		if n == 0 && state == gone && now.Sub(p.listedAt) > goneAfter && !p.responds(now) {
			w.drop(name)
			continue
		}
		states = append(states, podState{
			Pod: name, Node: p.instance.GetNode(), Zone: p.instance.GetZone(), IP: cmp.Or(p.dialedIPs[0], p.dialedIPs[1], p.instance.GetIp()), Version: p.instance.GetVersion(),
			State: state, Fault: p.faultState(now), Seen: unixMilli(p.seen), Via: calls,
		})
	}
	for _, ip := range slices.Sorted(maps.Keys(listed)) {
		if w.podAt[ip] == "" && len(states) < maxPods {
			state := ready
			if listed[ip] {
				state = notReady
			}
			states = append(states, podState{IP: ip, State: state, Via: map[string]seriesState{}})
		}
	}
	return states
}

// stateOf returns the state of a pod, from the IPs that names list, and from what the pod
// itself says.
func (w *window) stateOf(p *pod, now time.Time, listed map[string]bool, complete bool) state {
	for _, ip := range w.ips(p) {
		if unready, ok := listed[ip]; ok {
			p.listedAt = now
			if unready || p.faultIsFresh(now) && p.fault.NotReady {
				return notReady
			}
			return ready
		}
	}
	switch {
	case complete && p.faultIsFresh(now), p.faultIsFresh(now) && p.fault.NotReady:
		return notReady // it drains, starts, or has been told not to be ready
	case !complete && p.responds(now):
		return ready // no name says which pods there are
	}
	return gone
}

// faultState returns the fault of p, or nil if none is known.
func (p *pod) faultState(now time.Time) *faultState {
	if f := p.fault; p.faultIsFresh(now) && f != (fault.Fault{}) {
		return &faultState{f.Latency.String(), f.CPU.String(), f.ErrorRate, f.NotReady}
	}
	return nil
}

// listedIPs returns the IPs of pods that names resolve to, and whether each is not ready.
// It is complete if some name has resolved to the pods themselves, and not only to a
// virtual IP: then a pod that no name lists is gone.
func (w *window) listedIPs(ways []WayState) (unready map[string]bool, complete bool) {
	unready = map[string]bool{}
	for _, way := range ways {
		for _, e := range way.endpoints {
			ip, _, _ := net.SplitHostPort(e.Addr)
			if way.BalancedBy == call.BalancedByClient || w.podAt[ip] != "" {
				w.headless[way.Via] = true
				unready[ip] = unready[ip] || e.NotReady
			}
		}
		complete = complete || w.headless[way.Via]
	}
	return unready, complete
}

// seriesStates returns what is known of the calls to a pod, and how many there are.
func (w *window) seriesStates(now time.Time, all map[string]*series) (states map[string]seriesState, n uint32) {
	states = map[string]seriesState{}
	open := now.Sub(w.opened).Seconds()
	// The newest bucket covers the part of its second that has passed, and each of the others
	// a whole second. No bucket covers time before the window was opened.
	passed := open - float64(w.second-w.opened.Unix())
	covered := min(open, rateSeconds-1+passed)
	for via, s := range all {
		if s.total.count == 0 {
			continue
		}
		n += s.total.count
		states[via] = seriesState{
			Count:  s.total.count,
			Rate:   round(float64(s.recent(w.second)) / max(covered, 1)),
			P50:    round(s.total.percentile(0.50)),
			P99:    round(s.total.percentile(0.99)),
			Errors: s.total.errors(),
		}
	}
	return states, n
}

// callStates returns the calls since the last snapshot, those worth showing first.
func (w *window) callStates() (states []callState, more int) {
	list, more := w.calls.take()
	slices.SortFunc(list, func(a, b entry) int {
		switch {
		case a.before(&b):
			return -1
		case b.before(&a):
			return 1
		}
		return cmp.Compare(a.id, b.id)
	})
	states = make([]callState, 0, len(list))
	for _, e := range list {
		info := callInfo{CallInfo: e.info, Tries: make([]try, len(e.info.Tries))}
		info.Addresses = info.Addresses[:min(len(info.Addresses), maxAddresses)]
		for i, t := range e.info.Tries {
			ip, _, _ := net.SplitHostPort(t.Peer)
			info.Tries[i] = try{t, w.podAt[ip]}
		}
		if e.class == call.OK && len(info.Tries) > 0 {
			info.Tries[len(info.Tries)-1].Pod = e.pod // behind a virtual IP, only the response says it
		}
		state := callState{ID: e.id, At: e.ended.UnixMilli(), Via: e.via, Pod: e.pod, Class: e.class, Call: info}
		if e.err != nil {
			state.Detail = call.Shorten(e.err.Error(), maxDetail)
		}
		states = append(states, state)
	}
	return states, more
}

// unixMilli returns 0 for the zero time.
func unixMilli(t time.Time) int64 { return max(t.UnixMilli(), 0) }

func round(x float64) float64 { return math.Round(x*1000) / 1000 }
