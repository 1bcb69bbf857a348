package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	otlp "go.opentelemetry.io/proto/otlp/trace/v1"
	"go.uber.org/goleak"
	"google.golang.org/grpc"

	"example.com/tandem/kit/kittest"
)

// The tests of this package run service-a in the test, and service-b as a
// program of its own, at addresses of 127.0.0.0/8 that a DNS server on
// loopback knows by name: what pods are in a cluster.

var (
	names    *kittest.DNS
	serviceB string // the binary
	// Every pod has the same ports, as behind a Service; the addresses differ.
	httpPort, grpcPort, adminPort, debugPort = kittest.FreePort(), kittest.FreePort(), kittest.FreePort(), kittest.FreePort()
)

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "tandem")
	if err == nil {
		serviceB = filepath.Join(dir, "service-b")
		err = kittest.Build("../service-b", serviceB)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	names = kittest.UseDNS()
	code := m.Run()
	names.Close()
	_ = os.RemoveAll(dir) // it lies in the system's temporary folder
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

var transports = []string{"http", "grpc"}

// pod is one service-b.
type pod struct {
	*kittest.Process
	name, addr string
	environ    []string
}

func startB(t *testing.T, name, addr string, environ ...string) *pod {
	t.Helper()
	b := &pod{name: name, addr: addr, environ: append([]string{
		"POD_NAME=" + name, "HTTP_ADDR=" + addr + ":" + httpPort, "GRPC_ADDR=" + addr + ":" + grpcPort, "ADMIN_ADDR=" + addr + ":" + adminPort,
		"DEBUG_ADDR=" + addr + ":" + debugPort, "DRAIN_DELAY=500ms", "FAULTS=on",
	}, environ...)}
	b.start(t)
	return b
}

func (b *pod) start(t *testing.T) {
	t.Helper()
	b.Process = kittest.Start(t, serviceB, b.environ...)
	kittest.AwaitReady(t, "http://"+b.addr+":"+httpPort)
}

// stop ends it as Kubernetes does, and wants it to have lost nothing.
func (b *pod) stop(t *testing.T) {
	t.Helper()
	b.Signal(t, syscall.SIGTERM)
	require.Equal(t, 0, b.Wait(t, 30*time.Second))
}

// fault throws its fault switch.
func (b *pod) fault(t *testing.T, fault string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, "http://"+b.addr+":"+debugPort+"/faults", strings.NewReader(fault))
	require.NoError(t, err)
	code, _, body := kittest.Do(t, req)
	require.Equal(t, http.StatusOK, code, body)
}

// startA starts a service-a that calls name.
func startA(t *testing.T, name string, environ ...string) *kittest.Service {
	t.Helper()
	env := map[string]string{
		"POD_NAME": "a-1", "DRAIN_DELAY": "0s", "CALL_TIMEOUT": "2s",
		"HTTP_ADDR": "127.0.0.1:" + kittest.FreePort(), "ADMIN_ADDR": "127.0.0.1:" + kittest.FreePort(),
		"SERVICE_B_HTTP_URL": "http://" + name + ":" + httpPort, "SERVICE_B_GRPC_TARGET": "dns:///" + name + ":" + grpcPort,
	}
	for _, pair := range environ {
		k, v, _ := strings.Cut(pair, "=")
		env[k] = v
	}
	return kittest.Serve(t, run, env)
}

// startPair starts n service-b behind a name of the test's own, and a service-a.
func startPair(t *testing.T, n int, environ ...string) (*kittest.Service, []*pod, string) {
	t.Helper()
	name := nameOf(t)
	addrs := kittest.Loopbacks(t, n)
	bs := make([]*pod, n)
	for i, addr := range addrs {
		bs[i] = startB(t, fmt.Sprintf("b-%d", i+1), addr, environ...)
	}
	names.Set(name, addrs...)
	return startA(t, name), bs, name
}

// nameOf is a test's own name for service-b. (A label has 63 characters at most.)
func nameOf(t *testing.T) string {
	return fmt.Sprintf("service-b.%x.test", crc32.ChecksumIEEE([]byte(t.Name())))
}

// tree is the answer of /api/data, or the problem in its place.
type tree struct {
	ServedBy struct{ Pod string }
	Call     struct {
		Transport, Target, Peer, TraceID string
		Addresses                        []string
		Attempts                         int
		DurationMS                       float64
	}
	Data struct {
		Key, Message string
		ServedBy     struct{ Pod string }
	}
	Status        int
	Class, Detail string
}

func data(t testing.TB, a *kittest.Service, query string) (int, http.Header, tree) {
	t.Helper()
	code, header, body := kittest.Get(t, a.URL+"/api/data?"+query)
	var got tree
	require.NoError(t, json.Unmarshal([]byte(body), &got), body)
	return code, header, got
}

// counts is the answer of /api/spread.
type counts struct {
	N, Attempts int
	Pods        map[string]int
	Errors      map[string]int
	LatencyMS   struct{ P50, P90, P99, Max float64 }
}

func spread(t testing.TB, a *kittest.Service, via string, n int) counts {
	t.Helper()
	code, _, body := kittest.Get(t, fmt.Sprintf("%s/api/spread?via=%s&n=%d", a.URL, via, n))
	require.Equal(t, http.StatusOK, code, body)
	var got counts
	require.NoError(t, json.Unmarshal([]byte(body), &got), body)
	return got
}

func TestOneCallShowsHowItWent(t *testing.T) {
	t.Parallel()
	a, bs, name := startPair(t, 1)
	for transport, port := range map[string]string{"http": httpPort, "grpc": grpcPort} {
		t.Run(transport, func(t *testing.T) {
			code, header, got := data(t, a, "key=ada&via="+transport)
			require.Equal(t, http.StatusOK, code, got)
			assert.Equal(t, "application/json", header.Get("Content-Type"))
			assert.Equal(t, "a-1", got.ServedBy.Pod)
			assert.Equal(t, "b-1", got.Data.ServedBy.Pod)
			assert.Equal(t, "ada", got.Data.Key)
			assert.Equal(t, transport, got.Call.Transport)
			assert.Contains(t, got.Call.Target, name+":"+port)
			assert.Equal(t, []string{bs[0].addr + ":" + port}, got.Call.Addresses)
			assert.Equal(t, bs[0].addr+":"+port, got.Call.Peer)
			assert.Equal(t, 1, got.Call.Attempts)
			assert.Positive(t, got.Call.DurationMS)
			assert.Len(t, got.Call.TraceID, 32)
			assert.Contains(t, a.Log.String(), got.Call.TraceID, "log lines carry the trace id")
			kittest.Eventually(t, func() bool { return strings.Contains(bs[0].Log.String(), got.Call.TraceID) }, "service-b's too")
		})
	}
}

// spans is a collector that keeps what it is sent.
type spans struct {
	collector.UnimplementedTraceServiceServer
	mu  sync.Mutex
	got []*otlp.ResourceSpans
}

func (s *spans) Export(_ context.Context, req *collector.ExportTraceServiceRequest) (*collector.ExportTraceServiceResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.got = append(s.got, req.GetResourceSpans()...)
	return &collector.ExportTraceServiceResponse{}, nil
}

// of returns the spans of one trace, each as "service: name".
func (s *spans) of(traceID string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []string
	for _, r := range s.got {
		var service string
		for _, attr := range r.GetResource().GetAttributes() {
			if attr.GetKey() == "service.name" {
				service = attr.GetValue().GetStringValue()
			}
		}
		for _, scope := range r.GetScopeSpans() {
			for _, span := range scope.GetSpans() {
				if fmt.Sprintf("%x", span.GetTraceId()) == traceID {
					out = append(out, service+": "+span.GetName())
				}
			}
		}
	}
	return out
}

func TestOneCallThroughBothServicesIsOneTrace(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	kept := &spans{}
	server := grpc.NewServer()
	collector.RegisterTraceServiceServer(server, kept)
	go server.Serve(l) //nolint:errcheck // ends with Stop
	t.Cleanup(server.Stop)
	// The exporter reads the process's environment, so this cannot be parallel.
	environ := map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://" + l.Addr().String(), "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_BSP_SCHEDULE_DELAY": "100"}
	var pairs []string
	for k, v := range environ {
		t.Setenv(k, v)
		pairs = append(pairs, k+"="+v)
	}

	name := nameOf(t)
	addr := kittest.Loopbacks(t, 1)[0]
	startB(t, "b-1", addr, pairs...)
	names.Set(name, addr)
	a := startA(t, name, pairs...)
	for transport, want := range map[string][]string{
		"http": {"service-a: GET /api/data", "service-a: HTTP GET", "service-b: GET /api/data"},
		"grpc": {"service-a: GET /api/data", "service-a: data.v1.DataService/GetData", "service-b: data.v1.DataService/GetData"},
	} {
		t.Run(transport, func(t *testing.T) {
			_, _, got := data(t, a, "via="+transport)
			kittest.Eventually(t, func() bool { return len(kept.of(got.Call.TraceID)) >= len(want) }, "the spans arrive")
			assert.ElementsMatch(t, want, kept.of(got.Call.TraceID))
		})
	}
}

// Calls spread over every address behind the name, call by call.
func TestCallsSpreadOverAllInstances(t *testing.T) {
	t.Parallel()
	a, bs, _ := startPair(t, 3)
	const n = 300
	for _, via := range transports {
		got := spread(t, a, via, n)
		t.Logf("%s: %v", via, got.Pods)
		assert.Empty(t, got.Errors)
		for _, b := range bs {
			// A process that has to wait for a busy machine is rightly given fewer.
			assert.Greater(t, got.Pods[b.name], n/3/3, via)
		}
	}
}

func TestASickInstanceGetsNothingMoreAndNoCallFails(t *testing.T) {
	t.Parallel()
	a, bs, _ := startPair(t, 3)
	spread(t, a, "grpc", 30)
	bs[0].fault(t, `{"notReady":true}`)
	start := time.Now()
	kittest.Eventually(t, func() bool {
		got := spread(t, a, "grpc", 30)
		assert.Empty(t, got.Errors)
		return got.Pods["b-1"] == 0
	}, "calls leave the sick instance")
	t.Logf("gone from the choice after %s", time.Since(start).Round(time.Millisecond))
	got := spread(t, a, "grpc", 300)
	assert.Zero(t, got.Pods["b-1"])
	assert.Empty(t, got.Errors)

	bs[0].fault(t, `{}`)
	kittest.Eventually(t, func() bool { return spread(t, a, "grpc", 30).Pods["b-1"] > 0 }, "and come back to one that is well")
}

func TestANewcomerGetsItsShareOnceConnectionsHaveAged(t *testing.T) {
	t.Parallel()
	a, bs, name := startPair(t, 2, "MAX_CONNECTION_AGE=1s")
	for _, via := range transports {
		spread(t, a, via, 50)
	}
	third := startB(t, "b-3", kittest.Loopbacks(t, 1)[0], "MAX_CONNECTION_AGE=1s")
	names.Set(name, bs[0].addr, bs[1].addr, third.addr)
	start := time.Now()
	for _, via := range transports {
		// Of HTTP's 16 connections a third are the newcomer's; how many calls
		// each carries is up to chance, so half a fair share is asked for.
		share := map[string]int{"http": 50, "grpc": 75}[via]
		assert.Eventually(t, func() bool {
			got := spread(t, a, via, 300)
			assert.Empty(t, got.Errors, via)
			return got.Pods["b-3"] >= share
		}, 90*time.Second, 250*time.Millisecond, via)
		t.Logf("%s: its share after %s", via, time.Since(start).Round(time.Millisecond))
	}
}

func TestNothingIsLostOverRestartsUnderLoad(t *testing.T) {
	t.Parallel()
	// Young connections bring callers back to the one that was restarted.
	a, bs, _ := startPair(t, 2, "MAX_CONNECTION_AGE=1s")
	var calls, lost atomic.Int64
	ctx, stop := context.WithCancel(t.Context())
	var load sync.WaitGroup
	for _, via := range transports {
		load.Go(func() {
			for ctx.Err() == nil {
				got := spread(t, a, via, 20)
				calls.Add(20)
				for class, n := range got.Errors {
					lost.Add(int64(n))
					assert.Failf(t, "lost", "%d over %s: %s", n, via, class)
				}
				time.Sleep(20 * time.Millisecond) // steady, not a flood
			}
		})
	}
	for range 5 {
		begin := time.Now()
		bs[0].stop(t)
		drained := time.Since(begin)
		bs[0].start(t)
		t.Logf("drained in %s, up again after %s", drained.Round(time.Millisecond), time.Since(begin).Round(time.Millisecond))
		// The next restart must not meet a client that has not come back yet.
		for _, via := range transports {
			kittest.Eventually(t, func() bool { return spread(t, a, via, 20).Pods["b-1"] > 0 }, via+" reaches it again")
		}
	}
	stop()
	load.Wait()
	t.Logf("%d calls over 5 restarts, %d lost", calls.Load(), lost.Load())
	assert.Greater(t, calls.Load(), int64(1000))
}

func TestWhenTheCallerLeavesServiceBStops(t *testing.T) {
	t.Parallel()
	a, bs, _ := startPair(t, 1)
	bs[0].fault(t, `{"latency":"1m"}`)
	for via, seen := range map[string]string{"http": `"status":499`, "grpc": `"code":"Canceled"`} {
		// Only the log tells that a call has arrived, so one that left too soon
		// to arrive is made again.
		kittest.Eventually(t, func() bool {
			ctx, leave := context.WithCancel(t.Context())
			time.AfterFunc(100*time.Millisecond, leave)
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, a.URL+"/api/data?via="+via, nil)
			require.NoError(t, err)
			_, err = (&http.Transport{}).RoundTrip(req)
			require.ErrorIs(t, err, context.Canceled)
			return strings.Contains(bs[0].Log.String(), seen)
		}, via)
	}
}

func TestAStreamGoesOnOnAnotherInstance(t *testing.T) {
	t.Parallel()
	a, bs, _ := startPair(t, 2)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, a.URL+"/api/stream?interval=100ms&key=ada", nil)
	require.NoError(t, err)
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	resp, err := transport.RoundTrip(req)
	require.NoError(t, err)
	defer resp.Body.Close() //nolint:errcheck // it has ended by then
	assert.Equal(t, "text/event-stream", resp.Header.Get("Content-Type"))

	events := bufio.NewScanner(resp.Body)
	next := func(kind string) string { // data of the next event of a kind
		for events.Scan() {
			if events.Text() == "event: "+kind {
				for events.Scan() {
					if text, ok := strings.CutPrefix(events.Text(), "data: "); ok {
						return text
					}
				}
			}
		}
		require.Fail(t, "the stream has ended", "waiting for %s", kind)
		return ""
	}
	var first struct {
		Sequence int
		Data     struct{ ServedBy struct{ Pod string } }
	}
	require.NoError(t, json.Unmarshal([]byte(next("data")), &first))
	assert.Equal(t, 1, first.Sequence)
	next("data")

	serving, other := bs[0], bs[1]
	if first.Data.ServedBy.Pod == other.name {
		serving, other = other, serving
	}
	serving.Signal(t, syscall.SIGKILL)
	for !strings.Contains(next("data"), other.name) { // until the other takes over
		continue
	}

	// Both gone: it says so, and goes on when one is back.
	other.Signal(t, syscall.SIGKILL)
	for !strings.Contains(next("problem"), `"class":"refused"`) {
		continue
	}
	other.Wait(t, 20*time.Second)
	other.start(t)
	assert.Contains(t, next("data"), other.name)

	require.NoError(t, a.Stop(), "a stream does not hold the exit")
	for events.Scan() {
		continue
	}
	assert.NoError(t, events.Err(), "and ends as streams do, not broken off")
}

func TestASecondSignalEndsServiceBAtOnce(t *testing.T) {
	t.Parallel()
	b := startB(t, "b-1", kittest.Loopbacks(t, 1)[0], "DRAIN_DELAY=10m")
	b.Signal(t, syscall.SIGTERM)
	kittest.Eventually(t, func() bool { return strings.Contains(b.Log.String(), `"msg":"draining"`) }, "the first begins the drain")
	b.Signal(t, syscall.SIGTERM)
	assert.Equal(t, -1, b.Wait(t, 20*time.Second), "ended by the signal")
}
