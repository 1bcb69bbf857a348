package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	calls "example.com/tandem/kit/call"
	"example.com/tandem/kit/grpcclient"
	"example.com/tandem/kit/httpclient"
	"example.com/tandem/kit/kittest"
	datav1 "example.com/tandem/proto/data/v1"
	"example.com/tandem/service-a/internal/backend"
)

// The drill kills, restarts, stops and attacks service-b while callers call it
// without pause. It bounds the calls that are lost and the memory that service-b
// takes. `make drill` runs it in full, `make test` in short.
//
// Callers call through service-a's backends and not through its API: service-a's
// own server would use most of two cores. Measured with 50 callers and no
// latency: 7,400 calls a second over either transport through the API, 16,000
// (HTTP) and 28,000 (gRPC) through the backends.

// Bounds of every row. Lost calls have a bound for each row.
const (
	maxMemory = 115.0 // MiB: 90 % of service-b's memory limit in deploy/base
	maxOfOne  = 16.0  // MiB: what service-b may grow by for one connection
	// maxLostPerStop is for calls that were with an instance as it was stopped.
	maxLostPerStop = 3
)

// form is how much of the drill runs.
type form struct {
	kills, restarts, stops int
	callers                []int
	vias                   [][]string    // each is one run of a row
	hold                   time.Duration // of an attack
	// busy is service-b's latency for each caller. With it the rate of calls is
	// the same for any number of callers, the CPUs carry it, and nearly all calls
	// are in flight at service-b when something happens to it.
	busy time.Duration
	// timeout of a call. It is shorter than an instance is stopped for.
	timeout time.Duration
}

var (
	shortForm = form{
		kills: 1, restarts: 1, stops: 1,
		callers: []int{50},
		vias:    [][]string{{"http", "grpc"}},
		hold:    2 * time.Second,
		// The race detector makes callers slow, and other tests keep the CPUs busy:
		// 500 calls a second over each transport, and a longer time-out.
		busy:    2 * time.Millisecond,
		timeout: 4 * time.Second,
	}
	fullForm = form{
		kills: 6, restarts: 6, stops: 3,
		callers: []int{50, 200},
		vias:    [][]string{{"http"}, {"grpc"}},
		hold:    6 * time.Second,
		busy:    400 * time.Microsecond, // 2,500 calls a second
		timeout: 2 * time.Second,        // CALL_TIMEOUT's default
	}
)

// drillRow is one kind of event.
type drillRow struct {
	name    string
	pods    int
	latency time.Duration // of service-b, for each caller
	lost    int           // the bound; -1 is none
	do      func(*drill)
}

func TestDrill(t *testing.T) {
	kittest.Loopbacks(t, 1) // or skip before anything is built
	f, say := shortForm, t.Logf
	full := os.Getenv("DRILL") == "full"
	if full {
		f = fullForm
		say = func(format string, args ...any) { fmt.Printf(format+"\n", args...) }
	}
	say("building service-b")
	// No other test runs at the same time.
	defer func(before string) { serviceB = before }(serviceB)
	serviceB = filepath.Join(t.TempDir(), "service-b")
	require.NoError(t, kittest.BuildRelease("../service-b", serviceB))

	kill := func(d *drill) { d.kill(f.kills) }
	restart := func(d *drill) { d.restart(f.restarts) }
	suspend := func(d *drill) { d.suspend(f.stops) }
	rows := []drillRow{
		{name: "SIGKILL", pods: 2, latency: f.busy, do: kill},
		{name: "graceful", pods: 2, do: restart},
		{name: "SIGSTOP", pods: 2, latency: f.busy, lost: maxLostPerStop * f.stops, do: suspend},
		// One instance: callers have no other to turn to.
		{name: "half messages", pods: 1, latency: f.busy, do: func(d *drill) { d.halfMessages(f.hold) }},
		{name: "idle connections", pods: 1, latency: f.busy, do: func(d *drill) { d.idle(f.hold) }},
		{name: "odd headers", pods: 1, latency: f.busy, do: func(d *drill) { d.odd(f.hold) }},
	}
	// A POST is not retried, and HTTP/1.1 cannot tell a client in time that a
	// connection is about to close. The loss is only reported.
	posts := drillRow{name: "graceful", pods: 2, lost: -1, do: restart}

	start := time.Now()
	say("%-17s%-6s%7s %9s %6s  %-24s%9s%9s%9s%9s", "row", "via", "callers", "calls", "lost", "by class", "p50 ms", "p99 ms", "gap ms", "peak MiB")
	for _, row := range rows {
		for _, callers := range f.callers {
			for _, vias := range f.vias {
				runRow(t, f, row, vias, callers, say)
			}
			if full && row.name == posts.name {
				runRow(t, f, posts, []string{"POST"}, callers, say)
			}
		}
	}
	say("the drill took %s", time.Since(start).Round(time.Second))
}

// drill is one row while it runs.
type drill struct {
	*testing.T
	say     func(string, ...any)
	name    string // of service-b
	bs      []*pod
	latency time.Duration // of service-b
	callers int
	memory  kittest.Memory
	loads   []*load // one for each transport
}

// settings of service-b.
var settings = []string{
	"MAX_CONNECTION_AGE=2s", // or callers come back to a restarted instance late
	"LOG_LEVEL=error",       // the test keeps the log in memory
	// As in the cluster.
	"MEMORY_LIMIT=134217728",
}

// runRow starts service-b and its callers, does what the row does, prints a line
// for each transport and compares it with the bounds.
func runRow(t *testing.T, f form, row drillRow, vias []string, callers int, say func(string, ...any)) {
	t.Run(fmt.Sprintf("%s/%s/%d", row.name, strings.Join(vias, "+"), callers), func(t *testing.T) {
		d := &drill{T: t, say: say, name: nameOf(t), latency: time.Duration(callers) * row.latency, callers: callers}
		for i, addr := range kittest.Loopbacks(t, row.pods) {
			b := startB(t, fmt.Sprintf("b-%d", i+1), addr, settings...)
			d.bs = append(d.bs, b)
			d.started(b)
		}
		d.publish(d.bs...)
		for _, via := range vias {
			l := &load{via: via, call: d.client(via, f.timeout)}
			d.loads = append(d.loads, l)
			l.start(callers)
			t.Cleanup(l.stop)
		}
		for _, b := range d.bs {
			d.awaitShare(b)
		}
		row.do(d)

		peak := d.memory.Peak()
		if peak > maxMemory {
			t.Errorf("service-b took %.0f MiB: want at most %.0f", peak, maxMemory)
		}
		for _, l := range d.loads {
			l.stop()
			r := l.report()
			if row.lost >= 0 && r.lost > row.lost {
				t.Errorf("%d of %d calls over %s lost: want at most %d; one of them: %s", r.lost, r.calls, l.via, row.lost, r.why)
			}
			verdict := "held"
			switch {
			case t.Failed():
				verdict = "MISSED"
			case row.lost < 0:
				verdict = "not bounded"
			}
			say("%-17s%-6s%7d %9d %6d  %-24s%9.1f%9.1f%9.0f%9.0f  %s", row.name, l.via, callers,
				r.calls, r.lost, r.classes, ms(r.p50), ms(r.p99), ms(r.gap), peak, verdict)
		}
	})
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// publish makes the name of service-b stand for these instances.
func (d *drill) publish(bs ...*pod) {
	addrs := make([]string, len(bs))
	for i, b := range bs {
		addrs[i] = b.addr
	}
	names.Set(d.name, addrs...)
}

// others are all instances except for b.
func (d *drill) others(b *pod) []*pod {
	return slices.DeleteFunc(slices.Clone(d.bs), func(o *pod) bool { return o == b })
}

func (d *drill) started(b *pod) {
	d.memory.Watch(b.Process)
	if d.latency > 0 {
		b.fault(d.T, fmt.Sprintf(`{"latency":%q}`, d.latency))
	}
}

// kill kills one instance after the other with SIGKILL. DNS keeps the address of
// the first half of them, as Kubernetes may for seconds, and drops that of the rest.
func (d *drill) kill(times int) {
	for i := range times {
		b := d.bs[i%len(d.bs)]
		d.awaitShare(b)
		d.mark()
		b.Signal(d.T, syscall.SIGKILL)
		if i >= (times+1)/2 {
			d.publish(d.others(b)...)
		}
		require.Equal(d.T, -1, b.Wait(d.T, 10*time.Second), "ended by the signal")
		time.Sleep(500 * time.Millisecond)
		b.start(d.T)
		d.started(b)
		d.publish(d.bs...)
		ready := time.Now()
		d.awaitShare(b)
		for _, l := range d.loads {
			hits := l.hits()
			d.Logf("%s: kill %d hit %d calls; calls came back %s after it was ready", l.via, i+1, hits, time.Since(ready).Round(time.Millisecond))
			// About half of the calls are at each of two instances.
			assert.GreaterOrEqual(d.T, hits, d.callers/8, "%s: the kill hit too few calls to be a measure", l.via)
		}
	}
}

// restart ends one instance after the other with SIGTERM. For the first half of
// them the address leaves DNS with the signal, as endpoints do; for the rest DNS
// keeps it until the instance has ended, as a cache may.
func (d *drill) restart(times int) {
	for i := range times {
		b := d.bs[i%len(d.bs)]
		d.awaitShare(b)
		d.mark()
		b.Signal(d.T, syscall.SIGTERM)
		if i < (times+1)/2 {
			d.publish(d.others(b)...)
		}
		require.Equal(d.T, 0, b.Wait(d.T, 30*time.Second))
		d.publish(d.others(b)...)
		b.start(d.T)
		d.started(b)
		d.publish(d.bs...)
		d.awaitShare(b)
	}
}

// suspend stops one instance after the other with SIGSTOP for 5 s: it accepts
// connections and requests, and never responds.
func (d *drill) suspend(times int) {
	for i := range times {
		b := d.bs[i%len(d.bs)]
		d.awaitShare(b)
		d.mark()
		b.Signal(d.T, syscall.SIGSTOP)
		time.Sleep(5 * time.Second)
		b.Signal(d.T, syscall.SIGCONT)
		d.awaitShare(b)
		for _, l := range d.loads {
			hits := l.hits()
			d.Logf("%s: stop %d hit %d calls", l.via, i+1, hits)
			assert.GreaterOrEqual(d.T, hits, d.callers/8, "%s: the stop hit too few calls to be a measure", l.via)
		}
	}
}

// attack runs n hostile clients against b for a time, and waits until they have
// ended.
func (d *drill) attack(via string, b *pod, n int, hold time.Duration, client func(context.Context, *kittest.Hostile)) {
	h := d.hostile(via, b)
	ctx, cancel := context.WithTimeout(d.Context(), hold)
	defer cancel()
	var clients sync.WaitGroup
	for range n {
		clients.Go(func() { client(ctx, h) })
	}
	clients.Wait()
	d.wantOpened(h, n)
}

// wantOpened checks that an attack took place.
func (d *drill) wantOpened(h *kittest.Hostile, n int) {
	d.Logf("%d hostile connections, which sent %d KiB of half messages", h.Opened.Load(), h.Sent.Load()>>10)
	assert.GreaterOrEqual(d.T, h.Opened.Load(), int64(n*9/10), "connections that opened")
}

func (d *drill) hostile(via string, b *pod) *kittest.Hostile {
	return &kittest.Hostile{
		From:   kittest.Loopbacks(d.T, 1)[0],
		Addr:   net.JoinHostPort(b.addr, map[string]string{"http": httpPort, "grpc": grpcPort}[via]),
		Method: datav1.DataService_GetData_FullMethodName,
	}
}

// halfMessages attacks with gRPC messages, and HTTP requests, whose last byte is
// never sent. First it measures what one connection takes of an instance that
// nobody else calls. Then it opens a thousand connections to the callers' own.
func (d *drill) halfMessages(hold time.Duration) {
	half := func(via string, streams, size int) func(context.Context, *kittest.Hostile) {
		return func(ctx context.Context, h *kittest.Hostile) {
			if via == "http" {
				h.HalfRequest(ctx, size)
			} else {
				h.HalfMessages(ctx, streams, size)
			}
			assert.Positive(d.T, h.Sent.Load(), "bytes of half messages")
		}
	}
	for _, l := range d.loads {
		for _, size := range []int{60 << 10, 1 << 20} { // most messages are smaller than the first
			b := startB(d.T, "b-alone", kittest.Loopbacks(d.T, 1)[0], settings...)
			var memory kittest.Memory
			memory.Watch(b.Process)
			for range 100 { // service-b takes some memory for any call
				kittest.Get(d.T, "http://"+b.addr+":"+httpPort+"/api/data")
			}
			before := memory.Peak()
			d.attack(l.via, b, 1, 2*time.Second, half(l.via, 200, size))
			grown := memory.Peak() - before
			b.Signal(d.T, syscall.SIGKILL)
			d.say("  %s: one connection with 200 half messages of %d KiB: service-b grew by %.1f MiB", l.via, size>>10, grown)
			if grown > maxOfOne {
				d.Errorf("service-b grew by %.0f MiB for one %s connection with half messages of %d KiB: want at most %.0f", grown, l.via, size>>10, maxOfOne)
			}
		}
		d.attack(l.via, d.bs[0], 1000, hold, half(l.via, 20, 60<<10))
	}
}

// idle opens 6,000 connections and leaves them.
func (d *drill) idle(hold time.Duration) {
	n := 6000
	var limit syscall.Rlimit // Go has raised it to the hard limit
	require.NoError(d.T, syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit))
	if room := int(limit.Cur) - 1000; n > room { // callers need some too
		n = max(room, 100)
		d.say("  only %d idle connections, because the limit of open files is %d", n, limit.Cur)
	}
	for _, l := range d.loads {
		h := d.hostile(l.via, d.bs[0])
		ctx, cancel := context.WithCancel(d.Context())
		h.Idle(ctx, n, map[string]string{"http": kittest.HelloHTTP, "grpc": kittest.HelloGRPC}[l.via])
		time.Sleep(hold)
		cancel()
		d.wantOpened(h, n)
	}
}

// odd sends what no honest client sends, from eight clients.
func (d *drill) odd(hold time.Duration) {
	for _, l := range d.loads {
		d.attack(l.via, d.bs[0], 8, hold, func(ctx context.Context, h *kittest.Hostile) {
			if l.via == "http" {
				h.OddHTTP(ctx)
			} else {
				h.OddGRPC(ctx)
			}
		})
	}
}

// awaitShare waits until an instance serves at least a fifth of the calls of
// every load: then what happens to it happens to calls.
func (d *drill) awaitShare(b *pod) {
	for _, l := range d.loads {
		deadline := time.Now().Add(30 * time.Second)
		for {
			before := l.served()
			time.Sleep(max(250*time.Millisecond, 3*d.latency))
			all, its := 0, 0
			for name, n := range l.served() {
				all += n - before[name]
				if name == b.name {
					its = n - before[name]
				}
			}
			if all >= d.callers && its*5 >= all {
				break
			}
			if time.Now().After(deadline) {
				require.Failf(d.T, "no share", "%s: %s serves %d of %d calls", l.via, b.name, its, all)
			}
		}
	}
}

// mark notes the moment at which something happens to an instance, and checks
// that calls are in flight.
func (d *drill) mark() {
	for _, l := range d.loads {
		inFlight := l.mark(d.latency + d.latency/4)
		assert.GreaterOrEqual(d.T, inFlight, d.callers*3/4, "%s: calls in flight", l.via)
	}
}

// call makes one call, and returns the name of the instance that served it or,
// if the call is lost, its class and an error text.
type call func() (served, lost, why string)

// load is a number of callers without pause: each makes its next call as soon as
// the one before has ended. Every call is recorded.
type load struct {
	via     string
	call    call
	callers []*caller
	stopped atomic.Bool
	running sync.WaitGroup
	begin   time.Time
	last    atomic.Int64 // when a call last succeeded, since begin
	gap     atomic.Int64 // the longest time without that
}

// caller has a record of its own, so that callers do not wait for each other.
type caller struct {
	mu      sync.Mutex
	inCall  bool
	took    []time.Duration
	served  map[string]int // calls by instance
	lost    map[string]int // calls by class
	why     string         // the first was lost
	marked  time.Time
	longest time.Duration // of a call that the mark does not hit
	hits    int
}

func (l *load) start(callers int) {
	l.begin = time.Now()
	for range callers {
		c := &caller{served: map[string]int{}, lost: map[string]int{}}
		l.callers = append(l.callers, c)
		l.running.Go(func() {
			for !l.stopped.Load() {
				begin := c.begin()
				served, lost, why := l.call()
				end := time.Now()
				c.end(begin, end, served, lost, why)
				if lost == "" {
					l.succeeded(end.Sub(l.begin))
				}
			}
		})
	}
}

func (l *load) stop() {
	l.stopped.Store(true)
	l.running.Wait()
}

func (l *load) succeeded(at time.Duration) {
	gap := int64(at) - l.last.Swap(int64(at))
	for longest := l.gap.Load(); gap > longest && !l.gap.CompareAndSwap(longest, gap); {
		longest = l.gap.Load()
	}
}

func (c *caller) begin() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.inCall = true
	return time.Now()
}

func (c *caller) end(begin, end time.Time, served, lost, why string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.inCall = false
	c.took = append(c.took, end.Sub(begin))
	if lost == "" {
		c.served[served]++
	} else {
		c.lost[lost]++
		c.why = cmp.Or(c.why, why)
	}
	if begin.Before(c.marked) && end.After(c.marked) && (lost != "" || end.Sub(begin) > c.longest) {
		c.hits++
	}
}

// each calls visit for every caller, whose record does not change meanwhile.
func (l *load) each(visit func(*caller)) {
	for _, c := range l.callers {
		c.mu.Lock()
		visit(c)
		c.mu.Unlock()
	}
}

// mark begins to count hits: calls in flight at this moment that are then lost,
// or that take longer than calls do to which nothing happens. It returns how
// many calls are in flight.
func (l *load) mark(longest time.Duration) (inFlight int) {
	now := time.Now()
	l.each(func(c *caller) {
		c.marked, c.longest, c.hits = now, longest, 0
		if c.inCall {
			inFlight++
		}
	})
	return inFlight
}

func (l *load) hits() (total int) {
	l.each(func(c *caller) { total += c.hits })
	return total
}

func (l *load) served() map[string]int {
	return l.sum(func(c *caller) map[string]int { return c.served })
}

func (l *load) lost() map[string]int {
	return l.sum(func(c *caller) map[string]int { return c.lost })
}

func (l *load) sum(counts func(*caller) map[string]int) map[string]int {
	total := map[string]int{}
	l.each(func(c *caller) {
		for key, n := range counts(c) {
			total[key] += n
		}
	})
	return total
}

// report is what the callers saw.
type report struct {
	calls, lost   int
	classes, why  string
	p50, p99, gap time.Duration
}

func (l *load) report() report {
	r := report{gap: time.Duration(l.gap.Load())}
	var took []time.Duration
	l.each(func(c *caller) {
		took = append(took, c.took...)
		r.why = cmp.Or(r.why, c.why)
	})
	slices.Sort(took)
	r.calls = len(took)
	r.p50, r.p99 = took[r.calls/2], took[r.calls*99/100]
	lost := l.lost()
	var classes []string
	for _, class := range slices.Sorted(maps.Keys(lost)) {
		r.lost += lost[class]
		classes = append(classes, fmt.Sprintf("%s %d", class, lost[class]))
	}
	r.classes = strings.Join(classes, ", ")
	return r
}

// client is the one client, over a transport, of all callers.
func (d *drill) client(via string, timeout time.Duration) call {
	tel := kittest.Telemetry(d.T, io.Discard)
	if via == "grpc" {
		conn, err := grpcclient.New("dns:///"+d.name+":"+grpcPort, grpcclient.Options{Timeout: timeout, Telemetry: tel})
		require.NoError(d.T, err)
		d.Cleanup(func() { assert.NoError(d.T, conn.Close()) })
		return get(backend.NewGRPC(conn, timeout))
	}
	client := httpclient.New(httpclient.Options{Timeout: timeout, Telemetry: tel})
	d.Cleanup(client.CloseIdleConnections)
	url := url.URL{Scheme: "http", Host: net.JoinHostPort(d.name, httpPort)}
	if via == "POST" {
		return d.post(client, url.JoinPath("api", "data").String())
	}
	return get(backend.NewHTTP(client, url))
}

func get(b backend.Backend) call {
	return func() (served, lost, why string) {
		data, _, err := b.Get(context.Background(), "drill")
		if err != nil {
			return "", string(calls.ClassOf(err)), err.Error()
		}
		return data.GetServedBy().GetPod(), "", ""
	}
}

// post makes calls that are not idempotent. service-b takes no POST: a call is
// served if service-b says so with status 405.
func (d *drill) post(client *http.Client, url string) call {
	pods := map[string]string{}
	for _, b := range d.bs {
		pods[net.JoinHostPort(b.addr, httpPort)] = b.name
	}
	return func() (served, lost, why string) {
		ctx := httptrace.WithClientTrace(context.Background(), &httptrace.ClientTrace{
			GotConn: func(got httptrace.GotConnInfo) { served = pods[got.Conn.RemoteAddr().String()] },
		})
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, strings.NewReader("drill"))
		if err != nil {
			return "", "other", err.Error()
		}
		resp, err := client.Do(req)
		if err != nil {
			return "", string(calls.ClassOf(err)), err.Error()
		}
		_ = resp.Body.Close() // the client has read it whole
		if resp.StatusCode != http.StatusMethodNotAllowed {
			return "", resp.Status, resp.Status
		}
		return served, "", ""
	}
}
