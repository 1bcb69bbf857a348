package main

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"example.com/tandem/kit/kittest"
	"example.com/tandem/service-a/internal/live"
)

// liveBody is a snapshot of /api/live.
type liveBody struct {
	At   int64
	Ways []struct {
		Via, Target, BalancedBy string
		Addresses               []string
	}
	Pods []struct {
		Pod, IP, State string
		Fault          *struct {
			Latency  string
			NotReady bool
		}
		Via map[string]struct {
			Count    int
			P50, P99 float64
			Errors   map[string]int
		}
	}
	Unserved map[string]map[string]int
	Calls    []struct {
		Via, Pod, Class, Detail string
		Call                    struct {
			Attempts int
			TraceID  string
			Tries    []struct{ Peer, Class, Reason, Pod string }
		}
	}
	More int
}

// watcher reads /api/live.
type watcher struct {
	hello struct {
		WindowSeconds int
		Faults        bool
		TraceURL      string
		NoLoad        string
		ServedBy      struct{ Pod string }
		Ways          []struct{ Via, Target string }
	}
	mu     sync.Mutex
	latest liveBody
	burst  struct {
		N    int
		Via  string
		Pods map[string]int
	}
	raw   map[int64]string // snapshots by their time
	ended chan error       // nil if the response ended as HTTP says
}

func watch(t *testing.T, a *kittest.Service) *watcher {
	t.Helper()
	w, _ := watchWith(t, a, "", nil)
	return w
}

// watchWith also makes load: query is such as ?rate=20. leave ends the connection.
func watchWith(t *testing.T, a *kittest.Service, query string, header http.Header) (w *watcher, leave func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, a.URL+"/api/live"+query, nil)
	require.NoError(t, err)
	maps.Copy(req.Header, header)
	resp, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(req)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, resp.StatusCode)
	require.Equal(t, "text/event-stream", resp.Header.Get("Content-Type"))
	w = &watcher{raw: map[int64]string{}, ended: make(chan error, 1)}
	ready := make(chan struct{})
	go w.read(resp.Body, ready)
	t.Cleanup(func() {
		cancel()
		for range w.ended { // canceled, or ended before
		}
		_ = resp.Body.Close()
	})
	<-ready
	return w, cancel
}

// read closes ready after the first snapshot.
func (w *watcher) read(body io.Reader, ready chan struct{}) {
	defer close(w.ended)
	event := ""
	scanner := bufio.NewScanner(body)
	scanner.Buffer(nil, 1<<20)
	for scanner.Scan() {
		if name, ok := strings.CutPrefix(scanner.Text(), "event: "); ok {
			event = name
		}
		data, ok := strings.CutPrefix(scanner.Text(), "data: ")
		if !ok {
			continue
		}
		if event == "hello" {
			if err := json.Unmarshal([]byte(data), &w.hello); err != nil {
				w.ended <- err
			}
			continue
		}
		w.mu.Lock()
		if event == "burst" {
			if err := json.Unmarshal([]byte(data), &w.burst); err != nil {
				w.ended <- err
			}
			w.mu.Unlock()
			continue
		}
		w.latest = liveBody{}
		if err := json.Unmarshal([]byte(data), &w.latest); err != nil {
			w.ended <- err
		}
		w.raw[w.latest.At] = data
		if len(w.raw) == 1 {
			close(ready)
		}
		w.mu.Unlock()
	}
	w.ended <- scanner.Err()
}

// await waits for a snapshot of which condition is true, and returns it.
func (w *watcher) await(t *testing.T, description string, condition func(liveBody) bool) liveBody {
	t.Helper()
	var got liveBody
	kittest.Eventually(t, func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		got = w.latest
		return condition(got)
	}, description)
	return got
}

// state returns the state of a pod in a snapshot, or "" if it is not there.
func (b liveBody) state(pod string) string {
	for _, p := range b.Pods {
		if p.Pod == pod {
			return p.State
		}
	}
	return ""
}

// A snapshot has as many calls for each pod and way as /api/spread counted.
func TestLive_CountsEqualCalls(t *testing.T) {
	t.Parallel()
	_, _, name := startPair(t, 3)
	a := startA(t, name, "SERVICE_B_GRPC_SERVICE_ADDR="+name+":"+grpcPort, "TRACE_URL=https://traces.test/trace/{traceId}")
	getSpread(t, a, "http", 50) // before anybody watches: not counted
	w := watch(t, a)
	assert.Equal(t, "a-1", w.hello.ServedBy.Pod)
	assert.Equal(t, live.WindowSeconds, w.hello.WindowSeconds)
	assert.Equal(t, "https://traces.test/trace/{traceId}", w.hello.TraceURL)
	assert.False(t, w.hello.Faults)
	want := map[string]map[string]int{}
	for _, via := range []string{"http", "grpc", "grpc-service"} {
		want[via] = getSpread(t, a, via, 200).Pods
	}
	got := w.await(t, "the snapshot has all calls", func(b liveBody) bool {
		n := 0
		for _, p := range b.Pods {
			for _, s := range p.Via {
				n += s.Count
			}
		}
		return n == 600
	})
	require.Len(t, got.Pods, 3)
	for _, p := range got.Pods {
		assert.Equal(t, "ready", p.State)
		for via, s := range p.Via {
			assert.Equal(t, want[via][p.Pod], s.Count, "%s %s", via, p.Pod)
			assert.Empty(t, s.Errors)
			assert.Positive(t, s.P50)
			assert.LessOrEqual(t, s.P50, s.P99)
		}
	}
	require.Len(t, got.Ways, 3)
	for _, way := range got.Ways {
		assert.Len(t, way.Addresses, 3)
		assert.Equal(t, "client", way.BalancedBy)
	}
}

// A connection makes the calls that its page asks for: a burst once, and a rate until it
// ends.
func TestLive_MakesLoadOfItsPage(t *testing.T) {
	t.Parallel()
	a, bs, _ := startPair(t, 3)
	count := func(b liveBody) (n int) {
		for _, p := range b.Pods {
			n += p.Via["grpc"].Count
		}
		return n
	}
	w, leave := watchWith(t, a, "?via=grpc&n=60", nil)
	w.await(t, "the burst is counted", func(b liveBody) bool { return count(b) == 60 && w.burst.N == 60 })
	assert.Equal(t, "grpc", w.burst.Via)
	assert.Len(t, w.burst.Pods, len(bs))
	leave()

	// A browser that connects again by itself sends the id of the last event.
	w, leave = watchWith(t, a, "?via=grpc&n=60&rate=100", http.Header{"Last-Event-Id": {"1"}})
	w.await(t, "calls at a rate", func(b liveBody) bool { return count(b) > 80 })
	assert.Zero(t, w.burst.N, "the burst is not made again")
	trace := w.latest.Calls[0].Call.TraceID
	w.await(t, "each call is a trace of its own", func(b liveBody) bool { return len(b.Calls) > 0 && b.Calls[0].Call.TraceID != trace })
	leave()
	w = watch(t, a)
	before := count(w.latest)
	at := w.latest.At
	after := w.await(t, "three snapshots", func(b liveBody) bool { return b.At >= at+1500 })
	assert.LessOrEqual(t, count(after), before+spread, "calls go on")
}

// spread is how many calls of a connection may be in flight when it ends.
const spread = 16

// A connection beyond the limit is served, and told that it makes no calls.
func TestLive_LimitsLoads(t *testing.T) {
	t.Parallel()
	a := startA(t, hostOf(t))
	for range 10 {
		w, _ := watchWith(t, a, "?rate=1", nil)
		assert.Empty(t, w.hello.NoLoad)
	}
	w, leave := watchWith(t, a, "?rate=1&n=5", nil)
	assert.Contains(t, w.hello.NoLoad, "Too many")
	leave()
	w = watch(t, a)
	assert.Empty(t, w.hello.NoLoad)
}

func TestLive_RejectsInvalidLoad(t *testing.T) {
	t.Parallel()
	a := startA(t, hostOf(t))
	for query, want := range map[string]string{
		"?rate=101":           "rate is \"101\": want a whole number, 0 to 100",
		"?rate=-1":            "want a whole number, 0 to 100",
		"?rate=":              "want a whole number, 0 to 100",
		"?n=1001":             "want a whole number, 1 to 1000",
		"?via=carrier-pigeon": "want http",
	} {
		resp, err := http.Get(a.URL + "/api/live" + query)
		require.NoError(t, err)
		var problem struct{ Detail string }
		assert.NoError(t, json.NewDecoder(resp.Body).Decode(&problem))
		assert.NoError(t, resp.Body.Close())
		assert.Equal(t, http.StatusBadRequest, resp.StatusCode, query)
		assert.Contains(t, problem.Detail, want, query)
	}
}

// All viewers get the same bytes. One more than the limit gets a problem.
func TestLive_ViewersShareSnapshots(t *testing.T) {
	t.Parallel()
	a := startA(t, hostOf(t))
	viewers := make([]*watcher, live.MaxViewers)
	for i := range viewers {
		viewers[i] = watch(t, a)
	}
	code, header, body := kittest.Get(t, a.URL+"/api/live")
	assert.Equal(t, http.StatusServiceUnavailable, code)
	assert.NotEmpty(t, header.Get("Retry-After"))
	assert.Contains(t, body, "too many people watch")
	var at int64
	kittest.Eventually(t, func() bool {
		viewers[0].mu.Lock()
		at = viewers[0].latest.At
		viewers[0].mu.Unlock()
		for _, v := range viewers {
			v.mu.Lock()
			_, ok := v.raw[at]
			v.mu.Unlock()
			if !ok {
				return false
			}
		}
		return true
	}, "all viewers have the same snapshot")
	for _, v := range viewers {
		assert.Equal(t, viewers[0].raw[at], v.raw[at])
	}
}

// A pod that is not ready, and one that has gone, are shown so; an address that nothing has
// responded from is shown, too. A failure is counted for the pod of its address.
func TestLive_ShowsStateOfPods(t *testing.T) {
	t.Parallel()
	a, bs, name := startPair(t, 2)
	w := watch(t, a)
	getSpread(t, a, "grpc", 20)
	w.await(t, "both are ready", func(b liveBody) bool { return b.state("b-1") == "ready" && b.state("b-2") == "ready" })

	bs[0].setFault(t, `{"notReady":true}`)
	w.await(t, "b-1 is not ready", func(b liveBody) bool { return b.state("b-1") == "notReady" && b.state("b-2") == "ready" })
	bs[0].setFault(t, `{}`)
	w.await(t, "b-1 is ready again", func(b liveBody) bool { return b.state("b-1") == "ready" })

	for _, b := range bs {
		b.setFault(t, `{"errorRate":1}`)
	}
	getSpread(t, a, "grpc", 10)
	w.await(t, "failures are counted by pod", func(b liveBody) bool {
		n := 0
		for _, p := range b.Pods {
			n += p.Via["grpc"].Errors["unavailable"]
		}
		return n == 10 && len(b.Unserved) == 0
	})

	nobody := kittest.Loopbacks(t, 1)[0]
	dns.Set(name, bs[1].addr, nobody)
	bs[0].stop(t)
	getSpread(t, a, "http", 20) // calls that find nothing at an address make the client look the name up
	got := w.await(t, "b-1 has gone", func(b liveBody) bool { return b.state("b-1") == "gone" && b.state("b-2") == "ready" })
	assert.Equal(t, nobody, got.Pods[len(got.Pods)-1].IP)
	assert.Empty(t, got.Pods[len(got.Pods)-1].Pod)
}

// A call without a response is counted by way and class, and listed with the error.
func TestLive_ListsFailures(t *testing.T) {
	t.Parallel()
	a := startA(t, hostOf(t)) // the name does not exist
	w := watch(t, a)
	for _, via := range transports {
		getData(t, a, "via="+via)
	}
	seen := map[string]bool{}
	w.await(t, "both calls are listed and counted", func(b liveBody) bool {
		for _, c := range b.Calls {
			seen[c.Via+" "+c.Class] = strings.Contains(c.Detail, "no such host")
		}
		return b.Unserved["http"]["dns"] == 1 && b.Unserved["grpc"]["dns"] == 1
	})
	assert.Equal(t, map[string]bool{"http dns": true, "grpc dns": true}, seen)
}

// Each attempt is told, with the address, class and reason; a snapshot adds the pod.
func TestTries_TellEachAttempt(t *testing.T) {
	t.Parallel()
	a, bs, _ := startPair(t, 2)
	w := watch(t, a)
	for _, via := range transports {
		getSpread(t, a, via, 10)
	}
	bs[0].setFault(t, `{"errorRate":1}`)
	for via, port := range map[string]string{"http": httpPort, "grpc": grpcPort} {
		var got dataBody
		kittest.Eventually(t, func() bool { // until a first attempt goes to b-1
			_, _, got = getData(t, a, "via="+via)
			return got.Call.Attempts == 2
		}, "a call is retried")
		require.Len(t, got.Call.Tries, 2)
		first, second := got.Call.Tries[0], got.Call.Tries[1]
		assert.Equal(t, bs[0].addr+":"+port, first.Peer)
		assert.Equal(t, "unavailable", first.Class)
		assert.NotEmpty(t, first.Reason)
		assert.Positive(t, first.DurationMS)
		assert.Equal(t, bs[1].addr+":"+port, second.Peer)
		assert.Equal(t, "ok", second.Class)
		assert.Empty(t, second.Reason)
		w.await(t, "the snapshot names the pods", func(b liveBody) bool {
			for _, c := range b.Calls {
				if tries := c.Call.Tries; c.Via == via && len(tries) == 2 && tries[0].Pod == "b-1" && tries[1].Pod == "b-2" {
					return true
				}
			}
			getData(t, a, "via="+via)
			return false
		})
	}
}

// A draining service-a ends the events, and the response is complete.
func TestLive_EndsAtDrain(t *testing.T) {
	t.Parallel()
	a := startA(t, hostOf(t))
	w := watch(t, a)
	require.NoError(t, a.Stop())
	assert.NoError(t, <-w.ended)
}

// changeFault sends a request to /api/faults.
func changeFault(t *testing.T, a *kittest.Service, method, pod, body string, headers ...string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, a.URL+"/api/faults/"+pod, strings.NewReader(body))
	require.NoError(t, err)
	for _, h := range append([]string{"X-Tandem: 1", "Content-Type: application/json"}, headers...) {
		k, v, _ := strings.Cut(h, ": ")
		req.Header.Set(k, v)
	}
	code, _, text := kittest.Do(t, req)
	return code, text
}

// startFaulty starts n service-b, and a service-a whose page may set their faults.
func startFaulty(t *testing.T, n int) (*kittest.Service, []*pod, string) {
	t.Helper()
	_, bs, name := startPair(t, n)
	return startSetter(t, name), bs, name
}

func startSetter(t *testing.T, name string) *kittest.Service {
	t.Helper()
	return startA(t, name, "FAULTS=on", "DEBUG_ADDR=127.0.0.1:"+kittest.FreePort(), "SERVICE_B_PODS_URL=http://"+name+":"+httpPort)
}

// A fault is set on the pod that is named, and on no other. Each service-a shows it, and any
// can remove it.
func TestFaults_SetOnOnePod(t *testing.T) {
	t.Parallel()
	a, bs, name := startFaulty(t, 3)
	other := startSetter(t, name)
	code, body := changeFault(t, a, http.MethodPut, "b-2", `{"latency":"300ms"}`)
	require.Equal(t, http.StatusOK, code, body)
	for i, b := range bs {
		_, _, text := kittest.Get(t, "http://"+b.addr+":"+debugPort+"/faults")
		assert.Equal(t, i == 1, strings.Contains(text, "300ms"), text)
	}
	w := watch(t, other)
	assert.True(t, w.hello.Faults)
	w.await(t, "only b-2 has a fault", func(b liveBody) bool {
		faulty := ""
		for _, p := range b.Pods {
			if p.Fault != nil {
				faulty += p.Pod + " " + p.Fault.Latency
			}
		}
		return len(b.Pods) == 3 && faulty == "b-2 300ms"
	})
	code, body = changeFault(t, other, http.MethodDelete, "b-2", "")
	require.Equal(t, http.StatusOK, code, body)
	w.await(t, "no pod has a fault", func(b liveBody) bool {
		for _, p := range b.Pods {
			if p.Fault != nil {
				return false
			}
		}
		return true
	})
}

// Faults do not stop the switch: a pod that fails every request after five seconds is healed.
func TestFaults_HealFailingPod(t *testing.T) {
	t.Parallel()
	a, _, _ := startFaulty(t, 1)
	code, body := changeFault(t, a, http.MethodPut, "b-1", `{"latency":"5s","errorRate":1,"notReady":true}`)
	require.Equal(t, http.StatusOK, code, body)
	code, body = changeFault(t, a, http.MethodDelete, "b-1", "")
	require.Equal(t, http.StatusOK, code, body)
	code, _, got := getData(t, a, "via=http")
	assert.Equal(t, http.StatusOK, code, got)
}

func TestFaults_RejectInvalidRequests(t *testing.T) {
	t.Parallel()
	a, bs, name := startFaulty(t, 2)
	plain := startA(t, name)
	for _, c := range []struct {
		name, method, pod, body, header string
		a                               *kittest.Service
		status                          int
		detail                          string
	}{
		{name: "unknown pod", method: "PUT", pod: "b-9", body: `{}`, a: a, status: 404, detail: `no pod of service-b is named \"b-9\"`},
		{name: "unknown pod, delete", method: "DELETE", pod: "b-9", a: a, status: 404, detail: "2 others responded"},
		{name: "without the header", method: "DELETE", pod: "b-1", header: "X-Tandem: ", a: a, status: 403, detail: "X-Tandem"},
		{name: "form", method: "PUT", pod: "b-1", body: `{}`, header: "Content-Type: text/plain", a: a, status: 415, detail: "application/json"},
		{name: "invalid fault", method: "PUT", pod: "b-1", body: `{"errorRate":2}`, a: a, status: 400, detail: "want 0 to 1"},
		{name: "wrong method", method: "POST", pod: "b-1", a: a, status: 405, detail: "allowed methods: PUT, DELETE"},
		{name: "faults off", method: "PUT", pod: "b-1", body: `{}`, a: plain, status: 404, detail: "no route"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var headers []string
			if c.header != "" {
				headers = []string{c.header}
			}
			code, body := changeFault(t, c.a, c.method, c.pod, c.body, headers...)
			assert.Equal(t, c.status, code, body)
			assert.Contains(t, body, c.detail)
		})
	}
	for _, b := range bs {
		_, _, text := kittest.Get(t, "http://"+b.addr+":"+debugPort+"/faults")
		assert.Contains(t, text, `"latency":"0s"`)
	}
}

// A pod that does not respond is reported as such: it may be the one that is named.
func TestFaults_ReportUnreachablePod(t *testing.T) {
	t.Parallel()
	a, bs, name := startFaulty(t, 2)
	bs[0].Suspend(t)
	code, body := changeFault(t, a, http.MethodPut, "b-1", `{}`)
	bs[0].Signal(t, syscall.SIGCONT)
	assert.Equal(t, http.StatusGatewayTimeout, code, body)
	assert.Contains(t, body, `"class":"timeout"`)

	for _, b := range bs {
		b.stop(t)
	}
	code, body = changeFault(t, a, http.MethodDelete, "b-1", "")
	assert.Equal(t, http.StatusServiceUnavailable, code, body)
	assert.Contains(t, body, `"class":"refused"`)

	dns.Set(name)
	code, body = changeFault(t, a, http.MethodDelete, "b-1", "")
	assert.Equal(t, http.StatusServiceUnavailable, code, body)
	assert.Contains(t, body, `"class":"dns"`)
}

// However many clients set faults at once, service-a sends requests to few pods at a time: for 4 changes, to 16 each.
func TestFaults_LimitConnections(t *testing.T) {
	t.Parallel()
	var open, most atomic.Int64
	pods := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		n := open.Add(1)
		defer open.Add(-1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		time.Sleep(10 * time.Millisecond)
		w.WriteHeader(http.StatusMisdirectedRequest)
	}))
	require.NoError(t, pods.Listener.Close())
	var err error
	pods.Listener, err = net.Listen("tcp", "0.0.0.0:0")
	require.NoError(t, err)
	pods.Start()
	t.Cleanup(pods.Close)
	name := hostOf(t)
	dns.Set(name, kittest.Loopbacks(t, 20)...)
	_, port, err := net.SplitHostPort(pods.Listener.Addr().String())
	require.NoError(t, err)
	a := startA(t, name, "FAULTS=on", "DEBUG_ADDR=127.0.0.1:"+kittest.FreePort(), "SERVICE_B_PODS_URL=http://"+name+":"+port)
	var clients sync.WaitGroup
	for range 100 {
		clients.Go(func() {
			code, body := changeFault(t, a, http.MethodDelete, "b-1", "")
			if code == http.StatusServiceUnavailable { // on a busy machine, 2 s may pass before a change's turn
				assert.Contains(t, body, "too many faults are being changed")
			} else {
				assert.Equal(t, http.StatusNotFound, code, body)
			}
		})
	}
	clients.Wait()
	assert.LessOrEqual(t, most.Load(), int64(4*16))
}

// A service-b without FAULTS=on has no switch.
func TestFaults_NeedSwitchAtServiceB(t *testing.T) {
	t.Parallel()
	_, _, name := startPair(t, 1, "FAULTS=off")
	code, body := changeFault(t, startSetter(t, name), http.MethodPut, "b-1", `{}`)
	assert.Equal(t, http.StatusBadGateway, code, body)
	assert.Contains(t, body, "is FAULTS=on at service-b?")
}
