package live

import (
	"bytes"
	"math"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"example.com/tandem/kit/call"
	"example.com/tandem/kit/fault"
	datav1 "example.com/tandem/proto/data/v1"
	"example.com/tandem/service-a/internal/backend"
	"example.com/tandem/service-a/internal/faults"
)

const (
	// WindowSeconds is the length of a window, with one bucket for each second.
	WindowSeconds = 30
	// rateSeconds is how far the rate of calls looks back: the rate of the whole window would
	// follow a change too slowly.
	rateSeconds = 5
	// maxPods is how many pods a window has.
	maxPods = 256
	// maxCalls is how many calls a snapshot lists.
	maxCalls = 24
	// goneAfter is how long a pod without calls in the window is shown after its last sign of life.
	goneAfter = 15 * time.Second
)

// window holds what happened since it was opened, at most WindowSeconds ago. It is safe
// for concurrent use.
type window struct {
	opened time.Time

	mu       sync.Mutex
	second   int64 // of the newest buckets, in Unix time
	pods     map[string]*pod
	unserved map[string]*series // failed calls that name no pod, by via
	podAt    map[string]string  // the names of pods by IP, as far as responses have told
	headless map[string]bool    // whether the name of a via has resolved to the pods themselves, by via
	calls    calls
}

// pod is an instance of service-b.
type pod struct {
	instance  *datav1.Instance
	dialedIPs [2]string // IPv4 and IPv6, where service-a reached it itself and not by a virtual IP; outside a pod they differ from the instance's own
	seen      time.Time // when it last responded to a call
	listedAt  time.Time // when a name last resolved to one of its IPs
	fault     fault.Fault
	faultAt   time.Time          // the time for which fault was recorded
	series    map[string]*series // by via
}

func newWindow(now time.Time) *window {
	return &window{
		opened: now, second: now.Unix(),
		pods: map[string]*pod{}, unserved: map[string]*series{}, podAt: map[string]string{}, headless: map[string]bool{},
	}
}

// record adds a call that ended now. instance is the one that responded; nil if the call
// failed.
func (w *window) record(now time.Time, via string, instance *datav1.Instance, info backend.CallInfo, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.advance(now)
	class := call.ClassOf(err)
	peer, _, _ := net.SplitHostPort(info.Peer) // "" if there was none
	name := instance.GetPod()
	s := w.unserved
	if name != "" {
		p := w.podFor(instance)
		p.seen = now
		if info.BalancedBy == call.BalancedByClient {
			w.setDialedIP(p, peer)
		}
		s = p.series
	} else if p := w.pods[w.podAt[peer]]; p != nil {
		name, s = p.instance.GetPod(), p.series
	}
	if s[via] == nil {
		s[via] = &series{}
	}
	s[via].add(w.second, class, info.DurationMS)
	w.calls.add(entry{ended: now, via: via, pod: name, class: class, err: err, info: info})
}

// recordFaults records the faults that pods had at a time. It keeps a fault that was
// recorded for a later time.
func (w *window) recordFaults(at time.Time, statuses ...faults.Status) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, s := range statuses {
		f, err := fault.Parse(bytes.NewReader(s.Fault))
		if err != nil {
			continue // a newer service-b has faults that this version does not know
		}
		i := s.Instance
		if w.pods[i.Pod] == nil && len(w.pods) >= maxPods {
			continue // it must not replace one that calls reach
		}
		p := w.podFor(&datav1.Instance{Service: i.Service, Version: i.Version, Pod: i.Pod, Node: i.Node, Zone: i.Zone, Namespace: i.Namespace, Ip: i.IP})
		w.setDialedIP(p, s.IP)
		if at.Before(p.faultAt) {
			continue
		}
		p.faultAt, p.fault = at, f
	}
}

// responds reports whether p has responded lately, to a call or with its fault.
func (p *pod) responds(now time.Time) bool {
	return now.Sub(p.seen) <= goneAfter || p.faultIsFresh(now)
}

// faultIsFresh reports whether p's fault is up to date.
func (p *pod) faultIsFresh(now time.Time) bool { return now.Sub(p.faultAt) <= 3*faultsEvery }

// podFor returns the pod that is an instance, and adds it if it is new. If the window is
// full, it replaces the pod that has been silent for the longest time.
func (w *window) podFor(instance *datav1.Instance) *pod {
	p, ok := w.pods[instance.GetPod()]
	if !ok {
		if len(w.pods) >= maxPods {
			w.dropOldest()
		}
		p = &pod{series: map[string]*series{}}
		w.pods[instance.GetPod()] = p
	}
	if ip := instance.GetIp(); ip != p.instance.GetIp() {
		for _, former := range w.ips(p) {
			delete(w.podAt, former)
		}
		p.dialedIPs = [2]string{}
		w.podAt[ip] = instance.GetPod()
	}
	p.instance = instance
	return p
}

// setDialedIP records that service-a reached p itself at an IP, in place of the former
// one of the same family.
func (w *window) setDialedIP(p *pod, ip string) {
	family := 0
	if strings.Contains(ip, ":") {
		family = 1
	}
	if former := p.dialedIPs[family]; former != ip && w.podAt[former] == p.instance.GetPod() {
		delete(w.podAt, former)
	}
	p.dialedIPs[family] = ip
	w.podAt[ip] = p.instance.GetPod()
}

// ips returns the IPs that are p's, and no other pod's meanwhile.
func (w *window) ips(p *pod) []string {
	return slices.DeleteFunc([]string{p.dialedIPs[0], p.dialedIPs[1], p.instance.GetIp()}, func(ip string) bool { return w.podAt[ip] != p.instance.GetPod() })
}

func (w *window) dropOldest() {
	var oldest string
	for name, p := range w.pods {
		if oldest == "" || p.seen.Before(w.pods[oldest].seen) { // a pod that no call has reached comes first
			oldest = name
		}
	}
	w.drop(oldest)
}

func (w *window) drop(name string) {
	for _, ip := range w.ips(w.pods[name]) {
		delete(w.podAt, ip)
	}
	delete(w.pods, name)
}

// secondOf returns the second of a time, by the monotonic clock: the system's may be set
// back.
func (w *window) secondOf(now time.Time) int64 {
	return w.opened.Unix() + int64(now.Sub(w.opened)/time.Second)
}

// advance drops the buckets that are too old.
func (w *window) advance(now time.Time) {
	if second := w.secondOf(now); second > w.second {
		for _, p := range w.pods {
			for _, s := range p.series {
				s.advance(w.second, second)
			}
		}
		for _, s := range w.unserved {
			s.advance(w.second, second)
		}
		w.second = second
	}
}

// series counts calls in a window.
type series struct {
	total   bucket
	buckets [WindowSeconds]bucket // by their second modulo WindowSeconds
}

// bucket counts calls.
type bucket struct {
	count   uint32
	times   [timeSlots]uint32 // of the calls that did not fail
	classes [len(call.Failures)]uint32
}

func (s *series) add(second int64, class call.Class, ms float64) {
	for _, b := range []*bucket{&s.total, &s.buckets[second%WindowSeconds]} {
		b.count++
		if class == call.OK {
			b.times[slotOf(ms)]++
		}
		if i := slices.Index(call.Failures[:], class); i >= 0 {
			b.classes[i]++
		}
	}
}

// advance removes from the total what is as old as the window at second to.
func (s *series) advance(from, to int64) {
	for second := max(from, to-WindowSeconds) + 1; second <= to; second++ {
		old := &s.buckets[second%WindowSeconds]
		if old.count == 0 {
			continue
		}
		s.total.count -= old.count
		for i, n := range old.times {
			s.total.times[i] -= n
		}
		for i, n := range old.classes {
			s.total.classes[i] -= n
		}
		*old = bucket{}
	}
}

// recent returns how many calls ended in the last rateSeconds seconds.
func (s *series) recent(second int64) (n uint32) {
	for i := range int64(rateSeconds) {
		n += s.buckets[(second-i)%WindowSeconds].count
	}
	return n
}

// The durations of calls are counted in slots. The upper end of slot i is
// firstSlot * 2^(i/slotsPerDoubling) milliseconds, so that a percentile is exact to 9 %, up
// to 26 s.
const (
	timeSlots        = 73
	firstSlot        = 0.1
	slotsPerDoubling = 4
)

func slotOf(ms float64) int {
	if ms <= firstSlot {
		return 0
	}
	return min(int(math.Ceil(slotsPerDoubling*math.Log2(ms/firstSlot))), timeSlots-1)
}

// percentile returns the duration in milliseconds that a share of the calls did not exceed,
// or 0 if no call succeeded.
func (b *bucket) percentile(share float64) float64 {
	var n uint32
	for _, k := range b.times {
		n += k
	}
	rank := uint32(math.Ceil(share * float64(n)))
	var below uint32
	for i, k := range b.times {
		if below += k; k > 0 && below >= rank {
			return firstSlot * math.Exp2((float64(i)-0.5)/slotsPerDoubling) // the middle of the slot
		}
	}
	return 0
}

// errors returns the failed calls by class.
func (b *bucket) errors() map[call.Class]uint32 {
	counts := map[call.Class]uint32{}
	for i, n := range b.classes {
		if n > 0 {
			counts[call.Failures[i]] = n
		}
	}
	return counts
}

// entry is a call for the list of a snapshot.
type entry struct {
	id    uint64
	ended time.Time
	via   string
	pod   string
	class call.Class
	err   error
	info  backend.CallInfo
}

// before reports whether e is listed before other: failures first, then the slowest.
func (e *entry) before(other *entry) bool {
	if failed := e.class != call.OK; failed != (other.class != call.OK) {
		return failed
	}
	return e.info.DurationMS > other.info.DurationMS
}

// calls holds the calls since the last snapshot that are most worth showing.
type calls struct {
	lastID uint64
	list   []entry
	more   int // calls that are not in list
}

func (c *calls) add(e entry) {
	c.lastID++
	e.id = c.lastID
	if len(c.list) < maxCalls {
		c.list = append(c.list, e)
		return
	}
	c.more++
	last := 0
	for i := range c.list {
		if c.list[last].before(&c.list[i]) {
			last = i
		}
	}
	if e.before(&c.list[last]) {
		c.list[last] = e
	}
}

// take returns the calls, and starts with none again.
func (c *calls) take() (list []entry, more int) {
	list, more = c.list, c.more
	c.list, c.more = nil, 0
	return list, more
}
