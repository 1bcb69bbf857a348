package live

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"runtime"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"example.com/tandem/kit/call"
	"example.com/tandem/kit/fault"
	"example.com/tandem/kit/instance"
	datav1 "example.com/tandem/proto/data/v1"
	"example.com/tandem/service-a/internal/backend"
	"example.com/tandem/service-a/internal/faults"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// free is a way that costs nothing, so that what remains is the cost of the Collector.
type free struct {
	data *datav1.Data
	info backend.CallInfo
}

func (f free) Get(context.Context, string) (*datav1.Data, backend.CallInfo, error) {
	return f.data, f.info, nil
}
func (free) Target() string             { return "dns:///b:9090" }
func (free) Endpoints() []call.Endpoint { return nil }

func freeWay() Way {
	return Way{Via: "grpc", Backend: free{data: dataOf("b-1"), info: infoOf("10.0.0.1", 1)}}
}

func dataOf(name string) *datav1.Data {
	return &datav1.Data{ServedBy: &datav1.Instance{Pod: name}}
}

// infoOf describes a call to one of several addresses.
func infoOf(ip string, ms float64) backend.CallInfo {
	return backend.CallInfo{BalancedBy: call.BalancedByClient, Peer: net.JoinHostPort(ip, "9090"), DurationMS: ms}
}

// While nobody watches, a call allocates nothing more, and nothing is kept. The first viewer
// finds an empty window, and the last one takes it with it.
func TestCollector_CollectsOnlyWhileWatched(t *testing.T) {
	c := New([]Way{freeWay()}, nil)
	defer c.Close()
	b := c.Backends()["grpc"]
	get := func() { _, _, _ = b.Get(t.Context(), "") }
	assert.Zero(t, testing.AllocsPerRun(1000, get))
	assert.Nil(t, c.open.Load())

	v, leave, err := c.Join()
	require.NoError(t, err)
	assert.Contains(t, string(<-v.Snapshots), `"pods":[]`)
	get()
	for got := (snapshot{}); len(got.Pods) == 0; {
		require.NoError(t, json.Unmarshal(<-v.Snapshots, &got))
	}
	leave()
	assert.Eventually(t, func() bool { return c.open.Load() == nil }, 4*linger, time.Millisecond)
	assert.Zero(t, testing.AllocsPerRun(1000, get))
}

// A page that connects again finds the window as it was.
func TestCollector_KeepsWindowForNextViewer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := New([]Way{freeWay()}, nil)
		defer c.Close()
		_, leave, err := c.Join()
		require.NoError(t, err)
		w := c.open.Load()
		leave()
		time.Sleep(linger - 1)
		_, leave, err = c.Join()
		require.NoError(t, err)
		time.Sleep(2 * linger)
		assert.Same(t, w, c.open.Load(), "it is not closed while somebody watches")
		leave()
		time.Sleep(linger + 1)
		assert.Nil(t, c.open.Load())
	})
}

// A viewer that does not read holds up nobody, and finds the latest snapshot only.
func TestCollector_SlowViewerMissesSnapshots(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := New([]Way{freeWay()}, nil)
		defer c.Close()
		slow, leaveSlow, err := c.Join()
		require.NoError(t, err)
		defer leaveSlow()
		fast, leave, err := c.Join()
		require.NoError(t, err)
		defer leave()
		var latest []byte
		for range 10 {
			latest = <-fast.Snapshots
		}
		synctest.Wait()
		assert.Equal(t, string(latest), string(<-slow.Snapshots))
		assert.Empty(t, slow.Snapshots)
	})
}

func TestCollector_LimitsViewers(t *testing.T) {
	c := New(nil, nil)
	defer c.Close()
	var leave []func()
	for range MaxViewers {
		_, l, err := c.Join()
		require.NoError(t, err)
		leave = append(leave, l)
	}
	_, _, err := c.Join()
	require.ErrorIs(t, err, ErrTooMany)
	leave[0]()
	_, leave[0], err = c.Join()
	require.NoError(t, err)
	for _, l := range leave {
		l()
	}
}

// However many pods respond, a window keeps and shows at most maxPods, in bounded memory.
func TestWindow_MemoryIsBounded(t *testing.T) {
	heap := func() uint64 {
		runtime.GC()
		var stats runtime.MemStats
		runtime.ReadMemStats(&stats)
		return stats.HeapAlloc
	}
	before := heap()
	start := time.Unix(1_000_000, 0)
	w := newWindow(start)
	for i := range 5_000 {
		now := start.Add(time.Duration(i) * time.Millisecond)
		for _, via := range []string{"http", "grpc", "grpc-service"} {
			name := "b-" + strconv.Itoa(i)
			w.record(now, via, dataOf(name).GetServedBy(), infoOf(fmt.Sprintf("10.0.%d.%d", i/256, i%256), 1), nil)
			w.record(now, via, nil, infoOf("", 1), errors.New("failed"))
		}
	}
	assert.Less(t, heap()-before, uint64(12<<20))
	assert.LessOrEqual(t, len(w.podAt), 2*maxPods)
	got := w.snapshot(start.Add(5*time.Second), nil)
	assert.Len(t, got.Pods, maxPods)
	assert.Len(t, got.Calls, maxCalls)
	assert.Equal(t, 30_000-maxCalls, got.More)
	runtime.KeepAlive(w)
}

// The counts are those of the last 30 seconds, whatever the pauses between calls.
func TestWindow_DropsOldCalls(t *testing.T) {
	start := time.Unix(1_000_000, 0)
	w := newWindow(start)
	var at []int
	for i, pause := range []int{0, 0, 1, 5, 12, 29, 1, 30, 31, 3, 100, 0, 7} {
		second := pause
		if i > 0 {
			second += at[i-1]
		}
		at = append(at, second)
		now := start.Add(time.Duration(second) * time.Second)
		w.record(now, "http", dataOf("b-1").GetServedBy(), infoOf("10.0.0.1", float64(i+1)), nil)
		want := uint32(0)
		for _, s := range at {
			if s > second-WindowSeconds {
				want++
			}
		}
		got := w.snapshot(now, nil)
		require.Len(t, got.Pods, 1)
		assert.Equal(t, want, got.Pods[0].Via["http"].Count, "second %d", second)
	}
	last := start.Add(time.Duration(at[len(at)-1]) * time.Second)
	assert.Len(t, w.snapshot(last.Add(goneAfter), nil).Pods, 1)
	assert.Empty(t, w.snapshot(last.Add(WindowSeconds*time.Second), nil).Pods)
	assert.Empty(t, w.podAt)
}

// Percentiles are exact to 9 %.
func TestBucket_PercentileIsClose(t *testing.T) {
	var s series
	for i := range 1000 {
		s.add(0, call.OK, float64(i+1)) // 1 to 1000 ms
	}
	s.add(0, call.Timeout, 5000) // a failed call has no part in it
	assert.InEpsilon(t, 500, s.total.percentile(0.50), 0.09)
	assert.InEpsilon(t, 990, s.total.percentile(0.99), 0.09)
	assert.Equal(t, map[call.Class]uint32{call.Timeout: 1}, s.total.errors())
	assert.Zero(t, (&bucket{}).percentile(0.5))
}

// The calls that a snapshot lists are the failed ones and then the slowest.
func TestCalls_KeepFailuresAndSlowest(t *testing.T) {
	w := newWindow(time.Unix(1_000_000, 0))
	for i := range 1000 {
		var err error
		instance := dataOf("b-1").GetServedBy()
		if i%100 == 50 {
			instance, err = nil, &call.Error{Class: call.Timeout, Err: errors.New("late")}
		}
		w.record(time.Unix(1_000_001, 0), "http", instance, infoOf("10.0.0.1", float64(i)), err)
	}
	got := w.snapshot(time.Unix(1_000_002, 0), nil)
	require.Len(t, got.Calls, maxCalls)
	assert.Equal(t, 1000-maxCalls, got.More)
	for i, c := range got.Calls {
		if i < 10 {
			assert.Equal(t, call.Timeout, c.Class)
			assert.Equal(t, "late", c.Detail)
			assert.Equal(t, "b-1", c.Pod, "the address is b-1's")
		} else {
			assert.InEpsilon(t, 999-(i-10), c.Call.DurationMS, 1e-9)
		}
	}
	assert.Empty(t, w.snapshot(time.Unix(1_000_003, 0), nil).Calls)
}

// A pod is gone when no name lists it, unless the names are virtual IPs; what the pod says
// of itself counts, too.
func TestWindow_StateOfPod(t *testing.T) {
	headless := func(addrs ...string) []WayState {
		s := WayState{Via: "grpc", BalancedBy: call.BalancerOf(addrs)}
		for _, addr := range addrs {
			s.endpoints = append(s.endpoints, call.Endpoint{Addr: addr})
		}
		return []WayState{s}
	}
	virtual := headless("10.96.0.1:80")
	for _, c := range []struct {
		name string
		ways []WayState
		told string
		at   time.Duration // since the last call
		want state
	}{
		{name: "listed", ways: headless("10.0.0.1:9090", "10.0.0.2:9090"), want: ready},
		{name: "listed alone", ways: headless("10.0.0.1:9090"), want: ready},
		{name: "not listed", ways: headless("10.0.0.2:9090", "10.0.0.3:9090"), want: gone},
		{name: "not listed, but alive", ways: headless("10.0.0.2:9090", "10.0.0.3:9090"), told: `{}`, want: notReady},
		{name: "listed, told not to be ready", ways: headless("10.0.0.1:9090", "10.0.0.2:9090"), told: `{"notReady":true}`, want: notReady},
		{name: "virtual IP", ways: virtual, want: ready},
		{name: "virtual IP, silent", ways: virtual, at: goneAfter + time.Second, want: gone},
	} {
		t.Run(c.name, func(t *testing.T) {
			start := time.Unix(1_000_000, 0)
			w := newWindow(start)
			w.record(start, "grpc", dataOf("b-1").GetServedBy(), infoOf("10.0.0.1", 1), nil)
			now := start.Add(c.at)
			if c.told != "" {
				w.recordFaults(now, told(c.told))
			}
			got := w.snapshot(now, c.ways).Pods
			require.NotEmpty(t, got)
			assert.Equal(t, "b-1", got[0].Pod)
			assert.Equal(t, c.want, got[0].State)
		})
	}
}

// told is what the pod b-1 says of its fault.
func told(f string) faults.Status {
	return faults.Status{Status: fault.Status{Instance: instance.Instance{Pod: "b-1"}, Fault: json.RawMessage(f)}, IP: "10.0.0.1"}
}

// A late response about a fault does not replace a newer one.
func TestWindow_NewestFaultCounts(t *testing.T) {
	start := time.Unix(1_000_000, 0)
	w := newWindow(start)
	w.recordFaults(start.Add(time.Second), told(`{"latency":"300ms"}`)) // by a button
	w.recordFaults(start, told(`{}`))                                   // by a poll that began before
	assert.Equal(t, "300ms", w.snapshot(start.Add(time.Second), nil).Pods[0].Fault.Latency)
	w.recordFaults(start.Add(2*time.Second), told(`{}`))
	assert.Nil(t, w.snapshot(start.Add(2*time.Second), nil).Pods[0].Fault)
}

// A pod that comes back under its name with another IP leaves nothing behind, and a failed
// call to its old IP is nobody's.
func TestWindow_PodChangesIP(t *testing.T) {
	start := time.Unix(1_000_000, 0)
	w := newWindow(start)
	for _, ip := range []string{"10.0.0.1", "10.0.0.2"} {
		w.record(start, "grpc", &datav1.Instance{Pod: "b-1", Ip: ip}, infoOf(ip, 1), nil)
	}
	assert.Equal(t, map[string]string{"10.0.0.2": "b-1"}, w.podAt)
	w.record(start, "grpc", nil, infoOf("10.0.0.1", 1), &call.Error{Class: call.Refused, Err: errors.New("refused")})
	assert.Equal(t, map[string]map[call.Class]uint32{"grpc": {call.Refused: 1}}, w.snapshot(start, nil).Unserved)
}

// A pod with an IPv4 and an IPv6 address is one pod, whichever of them calls use, and failed
// calls to both are its own. When it comes back with others, both are forgotten.
func TestWindow_PodHasTwoIPs(t *testing.T) {
	start := time.Unix(1_000_000, 0)
	w := newWindow(start)
	way := WayState{Via: "grpc", BalancedBy: call.BalancedByClient}
	for i := range 2 {
		pod := &datav1.Instance{Pod: fmt.Sprintf("b-%d", i+1), Ip: fmt.Sprintf("10.0.0.%d", i+1)}
		for _, ip := range []string{pod.GetIp(), fmt.Sprintf("fd00::%d", i+1)} {
			way.endpoints = append(way.endpoints, call.Endpoint{Addr: net.JoinHostPort(ip, "9090")})
			w.record(start, "grpc", pod, infoOf(ip, 1), nil)
			w.record(start, "grpc", nil, infoOf(ip, 1), &call.Error{Class: call.Timeout, Err: errors.New("late")})
		}
	}
	got := w.snapshot(start, []WayState{way})
	require.Len(t, got.Pods, 2)
	for i, p := range got.Pods {
		assert.Equal(t, fmt.Sprintf("10.0.0.%d", i+1), p.IP)
		assert.Equal(t, ready, p.State)
		assert.Equal(t, uint32(4), p.Via["grpc"].Count)
	}
	assert.Empty(t, got.Unserved)

	w.record(start, "grpc", &datav1.Instance{Pod: "b-1", Ip: "10.0.0.9"}, infoOf("10.0.0.9", 1), nil)
	assert.Equal(t, map[string]string{"10.0.0.9": "b-1", "10.0.0.2": "b-2", "fd00::2": "b-2"}, w.podAt)
}

// What a call costs more because it may be watched.
func BenchmarkGet(b *testing.B) {
	way := freeWay()
	c := New([]Way{way}, nil)
	defer c.Close()
	for _, bench := range []struct {
		name    string
		backend backend.Backend
		watched bool
	}{
		{name: "without", backend: way.Backend},
		{name: "unwatched", backend: c.Backends()["grpc"]},
		{name: "watched", backend: c.Backends()["grpc"], watched: true},
	} {
		b.Run(bench.name, func(b *testing.B) {
			if bench.watched {
				_, leave, err := c.Join()
				require.NoError(b, err)
				defer leave()
			}
			b.ReportAllocs()
			for b.Loop() {
				_, _, _ = bench.backend.Get(b.Context(), "")
			}
		})
	}
}
