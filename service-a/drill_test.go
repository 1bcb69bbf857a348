package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"example.com/tandem/kit/kittest"
	datav1 "example.com/tandem/proto/data/v1"
)

// The drill kills, restarts, suspends and attacks service-b while callers call it
// without pause (load_test.go). It bounds the number of lost calls and the memory
// of service-b. `make drill` runs the full drill, `make test` a short one.
//
// Callers use service-a's backends and not its API, because service-a's server
// would use most of two cores. Measured with 50 callers and no latency: 7,400 calls
// a second over either transport through the API, 16,000 (HTTP) and 28,000 (gRPC)
// through the backends.

// Bounds of all rows. The bound of lost calls depends on the row.
const (
	maxMemory         = 115.0 // MiB: 90 % of service-b's memory limit in deploy/base
	maxConnMemory     = 16.0  // MiB: growth of service-b for one connection
	maxLostPerSuspend = 3     // calls in flight at an instance when it is suspended
)

// drillConfig is the extent of a drill.
type drillConfig struct {
	kills, restarts, suspensions int           // events in a row
	callers                      []int         // each row runs once for each number
	transports                   [][]string    // and once for each group of transports
	hold                         time.Duration // duration of an attack
	// latency of service-b for each caller. It makes the rate of calls independent
	// of the number of callers and low enough for the CPUs, and keeps nearly all
	// calls in flight at service-b when an event occurs.
	latency time.Duration
	// timeout of a call. It is shorter than an instance is suspended.
	timeout time.Duration
}

var (
	shortDrill = drillConfig{
		kills: 1, restarts: 1, suspensions: 1,
		callers:    []int{50},
		transports: [][]string{{"http", "grpc"}},
		hold:       2 * time.Second,
		// 500 calls a second over each transport and a longer timeout, because of the
		// race detector and of other tests.
		latency: 2 * time.Millisecond,
		timeout: 4 * time.Second,
	}
	fullDrill = drillConfig{
		kills: 6, restarts: 6, suspensions: 3,
		callers:    []int{50, 200},
		transports: [][]string{{"http"}, {"grpc"}},
		hold:       6 * time.Second,
		latency:    400 * time.Microsecond, // 2,500 calls a second
		timeout:    2 * time.Second,        // CALL_TIMEOUT's default
	}
)

// drillRow is one kind of event.
type drillRow struct {
	name    string
	pods    int           // instances of service-b
	latency time.Duration // of service-b, for each caller
	maxLost int           // calls; -1 is no bound
	do      func(*drill)
}

func TestDrill(t *testing.T) {
	kittest.Loopbacks(t, 1) // skips the test before the build where there is no such address
	config, printf := shortDrill, t.Logf
	full := os.Getenv("DRILL") == "full"
	if full {
		config = fullDrill
		printf = func(format string, args ...any) { fmt.Printf(format+"\n", args...) }
	}
	printf("building service-b")
	// The test is not parallel, so no other test starts this binary.
	defer func(before string) { serviceBBinary = before }(serviceBBinary)
	serviceBBinary = filepath.Join(t.TempDir(), "service-b")
	require.NoError(t, kittest.BuildRelease("../service-b", serviceBBinary))

	kill := func(d *drill) { d.kill(config.kills) }
	restart := func(d *drill) { d.restart(config.restarts) }
	suspend := func(d *drill) { d.suspend(config.suspensions) }
	rows := []drillRow{
		{name: "SIGKILL", pods: 2, latency: config.latency, do: kill},
		{name: "SIGTERM", pods: 2, do: restart},
		{name: "SIGSTOP", pods: 2, latency: config.latency, maxLost: maxLostPerSuspend * config.suspensions, do: suspend},
		// One instance, so that callers cannot use another.
		{name: "half-sent messages", pods: 1, latency: config.latency, do: func(d *drill) { d.halfMessages(config.hold) }},
		{name: "idle connections", pods: 1, latency: config.latency, do: func(d *drill) { d.idleConnections(config.hold) }},
		{name: "invalid requests", pods: 1, latency: config.latency, do: func(d *drill) { d.invalidRequests(config.hold) }},
	}
	// A POST is not retried, and HTTP/1.1 cannot announce in time that a connection
	// is about to close. Lost calls are reported, without a bound.
	posts := drillRow{name: "SIGTERM", pods: 2, maxLost: -1, do: restart}

	start := time.Now()
	printf("%-19s%-6s%7s %9s %6s  %-24s%9s%9s%9s%9s", "event", "via", "callers", "calls", "lost", "by class", "p50 ms", "p99 ms", "gap ms", "peak MiB")
	for _, row := range rows {
		for _, callers := range config.callers {
			for _, group := range config.transports {
				runRow(t, config, row, group, callers, printf)
			}
			if full && row.name == posts.name {
				runRow(t, config, posts, []string{"POST"}, callers, printf)
			}
		}
	}
	printf("the drill took %s", time.Since(start).Round(time.Second))
}

// drill is one row while it runs.
type drill struct {
	*testing.T
	printf  func(string, ...any)
	host    string // of service-b
	bs      []*pod
	latency time.Duration // of service-b
	callers int
	memory  kittest.Memory
	loads   []*load // one for each transport
}

// drillEnviron holds the settings of service-b.
var drillEnviron = []string{
	"MAX_CONNECTION_AGE=2s",  // so that callers soon use a restarted instance again
	"LOG_LEVEL=error",        // because the test keeps the log in memory
	"MEMORY_LIMIT=134217728", // as in deploy/base
}

// runRow starts service-b and its callers, runs the row, prints one line for each
// transport and compares the results with the bounds.
func runRow(t *testing.T, config drillConfig, row drillRow, transports []string, callers int, printf func(string, ...any)) {
	t.Run(fmt.Sprintf("%s/%s/%d", row.name, strings.Join(transports, "+"), callers), func(t *testing.T) {
		d := &drill{T: t, printf: printf, host: hostOf(t), latency: time.Duration(callers) * row.latency, callers: callers}
		for i, addr := range kittest.Loopbacks(t, row.pods) {
			b := startB(t, fmt.Sprintf("b-%d", i+1), addr, drillEnviron...)
			d.bs = append(d.bs, b)
			d.prepare(b)
		}
		d.publish(d.bs...)
		for _, via := range transports {
			l := &load{via: via, call: d.newCallFunc(via, config.timeout)}
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
			t.Errorf("service-b used %.0f MiB: want at most %.0f", peak, maxMemory)
		}
		for _, l := range d.loads {
			l.stop()
			r := l.report()
			if row.maxLost >= 0 && r.lost > row.maxLost {
				t.Errorf("%d of %d calls over %s lost: want at most %d; the first error: %s", r.lost, r.calls, l.via, row.maxLost, r.firstError)
			}
			verdict := "held"
			switch {
			case t.Failed():
				verdict = "MISSED"
			case row.maxLost < 0:
				verdict = "not bounded"
			}
			printf("%-19s%-6s%7d %9d %6d  %-24s%9.1f%9.1f%9.0f%9.0f  %s", row.name, l.via, callers,
				r.calls, r.lost, r.classes, ms(r.p50), ms(r.p99), ms(r.gap), peak, verdict)
		}
	})
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// publish makes the name of service-b resolve to these instances.
func (d *drill) publish(bs ...*pod) {
	addrs := make([]string, len(bs))
	for i, b := range bs {
		addrs[i] = b.addr
	}
	dns.Set(d.host, addrs...)
}

// others returns all instances except b.
func (d *drill) others(b *pod) []*pod {
	return slices.DeleteFunc(slices.Clone(d.bs), func(o *pod) bool { return o == b })
}

// prepare measures the memory of an instance that has started, and sets its latency.
func (d *drill) prepare(b *pod) {
	d.memory.Watch(b.Process)
	if d.latency > 0 {
		b.setFault(d.T, fmt.Sprintf(`{"latency":%q}`, d.latency))
	}
}

// kill sends SIGKILL to each instance in turn. In the first half of the events DNS
// keeps the address, as Kubernetes may for seconds; in the other half it does not.
func (d *drill) kill(times int) {
	for i := range times {
		b := d.bs[i%len(d.bs)]
		d.awaitShare(b)
		d.markEvent()
		b.Signal(d.T, syscall.SIGKILL)
		if i >= (times+1)/2 {
			d.publish(d.others(b)...)
		}
		require.Equal(d.T, -1, b.Wait(d.T, 10*time.Second), "the signal ended the process")
		time.Sleep(500 * time.Millisecond)
		b.start(d.T)
		d.prepare(b)
		d.publish(d.bs...)
		ready := time.Now()
		d.awaitShare(b)
		for _, l := range d.loads {
			hits := l.hits()
			d.Logf("%s: kill %d hit %d calls; the instance had its share of calls %s after it was ready", l.via, i+1, hits, time.Since(ready).Round(time.Millisecond))
			// About half of the calls are at each of two instances.
			assert.GreaterOrEqual(d.T, hits, d.callers/8, "%s: calls that the kill hit", l.via)
		}
	}
}

// restart sends SIGTERM to each instance in turn. In the first half of the events
// DNS drops the address at the signal, as Kubernetes does; in the other half DNS
// keeps the address until the instance has ended, as a cache may.
func (d *drill) restart(times int) {
	for i := range times {
		b := d.bs[i%len(d.bs)]
		d.awaitShare(b)
		d.markEvent()
		b.Signal(d.T, syscall.SIGTERM)
		if i < (times+1)/2 {
			d.publish(d.others(b)...)
		}
		require.Equal(d.T, 0, b.Wait(d.T, 30*time.Second))
		d.publish(d.others(b)...)
		b.start(d.T)
		d.prepare(b)
		d.publish(d.bs...)
		d.awaitShare(b)
	}
}

// suspend sends SIGSTOP to each instance in turn, for 5 s. A suspended process
// accepts connections and requests, and does not respond.
func (d *drill) suspend(times int) {
	for i := range times {
		b := d.bs[i%len(d.bs)]
		d.awaitShare(b)
		d.markEvent()
		b.Suspend(d.T)
		time.Sleep(5 * time.Second)
		b.Signal(d.T, syscall.SIGCONT)
		d.awaitShare(b)
		for _, l := range d.loads {
			hits := l.hits()
			d.Logf("%s: suspension %d hit %d calls", l.via, i+1, hits)
			assert.GreaterOrEqual(d.T, hits, d.callers/8, "%s: calls that the suspension hit", l.via)
		}
	}
}

// attack runs n hostile clients against b for the duration hold.
func (d *drill) attack(via string, b *pod, n int, hold time.Duration, client func(context.Context, *kittest.Hostile)) {
	h := d.hostile(via, b)
	ctx, cancel := context.WithTimeout(d.Context(), hold)
	defer cancel()
	var clients sync.WaitGroup
	for range n {
		clients.Go(func() { client(ctx, h) })
	}
	clients.Wait()
	d.requireOpened(h, n)
}

// requireOpened fails the test unless the attack opened its connections.
func (d *drill) requireOpened(h *kittest.Hostile, n int) {
	d.Logf("%d hostile connections, which sent %d KiB of incomplete messages", h.Opened.Load(), h.Sent.Load()>>10)
	assert.GreaterOrEqual(d.T, h.Opened.Load(), int64(n*9/10), "connections that opened")
}

func (d *drill) hostile(via string, b *pod) *kittest.Hostile {
	return &kittest.Hostile{
		From:   kittest.Loopbacks(d.T, 1)[0],
		Addr:   net.JoinHostPort(b.addr, map[string]string{"http": httpPort, "grpc": grpcPort}[via]),
		Method: datav1.DataService_GetData_FullMethodName,
	}
}

// halfMessages sends gRPC messages, and HTTP requests, without their last byte.
// First it measures by how much an instance without other callers grows for one
// connection. Then it opens 1,000 connections to the instance that the callers use.
func (d *drill) halfMessages(hold time.Duration) {
	half := func(via string, streams, size int) func(context.Context, *kittest.Hostile) {
		return func(ctx context.Context, h *kittest.Hostile) {
			if via == "http" {
				h.HalfRequest(ctx, size)
			} else {
				h.HalfMessages(ctx, streams, size)
			}
			assert.Positive(d.T, h.Sent.Load(), "bytes of incomplete messages")
		}
	}
	for _, l := range d.loads {
		for _, size := range []int{60 << 10, 1 << 20} { // most messages are smaller than 60 KiB
			b := startB(d.T, "b-alone", kittest.Loopbacks(d.T, 1)[0], drillEnviron...)
			var memory kittest.Memory
			memory.Watch(b.Process)
			for range 100 { // the first calls need memory in any case
				kittest.Get(d.T, "http://"+b.addr+":"+httpPort+"/api/data")
			}
			before := memory.Peak()
			d.attack(l.via, b, 1, 2*time.Second, half(l.via, 200, size))
			growth := memory.Peak() - before
			b.Signal(d.T, syscall.SIGKILL)
			d.printf("  %s: one connection with 200 half-sent messages of %d KiB: service-b grew by %.1f MiB", l.via, size>>10, growth)
			if growth > maxConnMemory {
				d.Errorf("service-b grew by %.0f MiB for one %s connection with half-sent messages of %d KiB: want at most %.0f",
					growth, l.via, size>>10, maxConnMemory)
			}
		}
		d.attack(l.via, d.bs[0], 1000, hold, half(l.via, 20, 60<<10))
	}
}

// idleConnections opens 6,000 connections and keeps them open.
func (d *drill) idleConnections(hold time.Duration) {
	n := 6000
	var limit syscall.Rlimit // Go raises the soft limit to the hard limit
	require.NoError(d.T, syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit))
	if available := int(limit.Cur) - 1000; n > available { // callers need the rest
		n = max(available, 100)
		d.printf("  only %d idle connections, because the limit of open files is %d", n, limit.Cur)
	}
	for _, l := range d.loads {
		h := d.hostile(l.via, d.bs[0])
		ctx, cancel := context.WithCancel(d.Context())
		h.Idle(ctx, n, map[string]string{"http": kittest.HelloHTTP, "grpc": kittest.HelloGRPC}[l.via])
		time.Sleep(hold)
		cancel()
		d.requireOpened(h, n)
	}
}

// invalidRequests sends malformed and oversized requests from eight clients.
func (d *drill) invalidRequests(hold time.Duration) {
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

// awaitShare waits until b serves at least a fifth of the calls of every load, so
// that the next event hits calls.
func (d *drill) awaitShare(b *pod) {
	for _, l := range d.loads {
		deadline := time.Now().Add(30 * time.Second)
		for {
			before := l.served()
			time.Sleep(max(250*time.Millisecond, 3*d.latency))
			all, served := 0, 0
			for name, n := range l.served() {
				all += n - before[name]
				if name == b.name {
					served = n - before[name]
				}
			}
			if all >= d.callers && served*5 >= all {
				break
			}
			if time.Now().After(deadline) {
				require.Failf(d.T, "too few calls", "%s: %s serves %d of %d calls", l.via, b.name, served, all)
			}
		}
	}
}

// markEvent records the time of an event, and checks that calls are in flight.
func (d *drill) markEvent() {
	for _, l := range d.loads {
		inFlight := l.markEvent(d.latency + d.latency/4)
		assert.GreaterOrEqual(d.T, inFlight, d.callers*3/4, "%s: calls in flight", l.via)
	}
}
