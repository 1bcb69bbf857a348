package main

import (
	"bufio"
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"example.com/tandem/kit/kittest"
)

// The response describes the call: name, addresses, balancer, peer, attempts, duration and
// trace id, which the logs of both services contain.
func TestPair_DescribesTheCall(t *testing.T) {
	t.Parallel()
	a, bs, name := startPair(t, 1)
	for transport, port := range map[string]string{"http": httpPort, "grpc": grpcPort} {
		t.Run(transport, func(t *testing.T) {
			code, header, got := getData(t, a, "key=ada&via="+transport)
			require.Equal(t, http.StatusOK, code, got)
			assert.Equal(t, "application/json", header.Get("Content-Type"))
			assert.Equal(t, "a-1", got.ServedBy.Pod)
			assert.Equal(t, "b-1", got.Data.ServedBy.Pod)
			assert.Equal(t, "ada", got.Data.Key)
			assert.Equal(t, transport, got.Call.Transport)
			assert.Contains(t, got.Call.Target, name+":"+port)
			assert.Equal(t, []string{bs[0].addr + ":" + port}, got.Call.Addresses)
			assert.Equal(t, "network", got.Call.BalancedBy)
			assert.Equal(t, bs[0].addr+":"+port, got.Call.Peer)
			assert.Equal(t, 1, got.Call.Attempts)
			assert.Positive(t, got.Call.DurationMS)
			assert.Len(t, got.Call.TraceID, 32)
			assert.Contains(t, a.Log.String(), got.Call.TraceID, "service-a's log contains the trace id")
			kittest.Eventually(t, func() bool { return strings.Contains(bs[0].Log.String(), got.Call.TraceID) }, "service-b's log contains the trace id")
		})
	}
}

// Calls are spread over all addresses that the name resolves to.
func TestPair_SpreadsCallsOverInstances(t *testing.T) {
	t.Parallel()
	a, bs, _ := startPair(t, 3)
	const n = 300
	for _, via := range transports {
		got := getSpread(t, a, via, n)
		t.Logf("%s: %v", via, got.Pods)
		assert.Empty(t, got.Errors)
		for _, b := range bs {
			// On a busy machine a slower process gets fewer calls, so a third of the fair
			// share is enough.
			assert.Greater(t, got.Pods[b.name], n/3/3, via)
		}
	}
}

// An instance that is not ready gets no calls, and no call fails.
func TestPair_AvoidsNotReadyInstance(t *testing.T) {
	t.Parallel()
	a, bs, _ := startPair(t, 3)
	getSpread(t, a, "grpc", 30)
	bs[0].setFault(t, `{"notReady":true}`)
	start := time.Now()
	kittest.Eventually(t, func() bool {
		got := getSpread(t, a, "grpc", 30)
		assert.Empty(t, got.Errors)
		return got.Pods["b-1"] == 0
	}, "the instance gets no more calls")
	t.Logf("the instance got no more calls after %s", time.Since(start).Round(time.Millisecond))
	got := getSpread(t, a, "grpc", 300)
	assert.Zero(t, got.Pods["b-1"])
	assert.Empty(t, got.Errors)

	bs[0].setFault(t, `{}`)
	kittest.Eventually(t, func() bool { return getSpread(t, a, "grpc", 30).Pods["b-1"] > 0 }, "the instance gets calls again")
}

// A new instance gets its share of calls when connections reach their maximum age.
func TestPair_NewInstanceGetsItsShare(t *testing.T) {
	t.Parallel()
	a, bs, name := startPair(t, 2, "MAX_CONNECTION_AGE=1s")
	for _, via := range transports {
		getSpread(t, a, via, 50)
	}
	third := startB(t, "b-3", kittest.Loopbacks(t, 1)[0], "MAX_CONNECTION_AGE=1s")
	dns.Set(name, bs[0].addr, bs[1].addr, third.addr)
	start := time.Now()
	for _, via := range transports {
		// HTTP has 16 connections, a third of which go to the new instance. The number
		// of calls on each varies, so the test wants half of the fair share.
		share := map[string]int{"http": 50, "grpc": 75}[via]
		assert.Eventually(t, func() bool {
			got := getSpread(t, a, via, 300)
			assert.Empty(t, got.Errors, via)
			return got.Pods["b-3"] >= share
		}, 90*time.Second, 250*time.Millisecond, via)
		t.Logf("%s: the new instance had its share after %s", via, time.Since(start).Round(time.Millisecond))
	}
}

// No call is lost when an instance restarts under load.
func TestPair_LosesNoCallOnRestart(t *testing.T) {
	t.Parallel()
	// Clients return to a restarted instance when a connection reaches its maximum age.
	a, bs, _ := startPair(t, 2, "MAX_CONNECTION_AGE=1s")
	var calls, lost atomic.Int64
	ctx, stop := context.WithCancel(t.Context())
	var load sync.WaitGroup
	for _, via := range transports {
		load.Go(func() {
			for ctx.Err() == nil {
				got := getSpread(t, a, via, 20)
				calls.Add(20)
				for class, n := range got.Errors {
					lost.Add(int64(n))
					assert.Failf(t, "lost", "%d over %s: %s", n, via, class)
				}
				time.Sleep(20 * time.Millisecond) // a moderate load
			}
		})
	}
	for range 5 {
		begin := time.Now()
		bs[0].stop(t)
		drained := time.Since(begin)
		bs[0].start(t)
		t.Logf("drained in %s, up again after %s", drained.Round(time.Millisecond), time.Since(begin).Round(time.Millisecond))
		// The next restart must hit an instance that has calls.
		for _, via := range transports {
			kittest.Eventually(t, func() bool { return getSpread(t, a, via, 20).Pods["b-1"] > 0 }, "calls over "+via+" reach the instance again")
		}
	}
	stop()
	load.Wait()
	t.Logf("%d calls over 5 restarts, %d lost", calls.Load(), lost.Load())
	assert.Greater(t, calls.Load(), int64(1000))
}

// When a client cancels its request to service-a, the call to service-b ends.
func TestPair_CancelReachesServiceB(t *testing.T) {
	t.Parallel()
	a, bs, _ := startPair(t, 1)
	bs[0].setFault(t, `{"latency":"1m"}`)
	for via, logEntry := range map[string]string{"http": `"status":499`, "grpc": `"code":"Canceled"`} {
		// A request that was canceled before service-b was called leaves no log entry.
		// The test then sends another.
		kittest.Eventually(t, func() bool {
			ctx, cancel := context.WithCancel(t.Context())
			time.AfterFunc(100*time.Millisecond, cancel)
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, a.URL+"/api/data?via="+via, nil)
			require.NoError(t, err)
			_, err = (&http.Transport{}).RoundTrip(req)
			require.ErrorIs(t, err, context.Canceled)
			return strings.Contains(bs[0].Log.String(), logEntry)
		}, via)
	}
}

// A stream continues from another instance when its own is killed. While there is
// no instance, it sends events of type problem.
func TestPair_StreamMovesToOtherInstance(t *testing.T) {
	t.Parallel()
	a, bs, _ := startPair(t, 2)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, a.URL+"/api/stream?interval=100ms&key=ada", nil)
	require.NoError(t, err)
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	resp, err := transport.RoundTrip(req)
	require.NoError(t, err)
	defer resp.Body.Close() //nolint:errcheck // the stream has ended
	assert.Equal(t, "text/event-stream", resp.Header.Get("Content-Type"))

	events := bufio.NewScanner(resp.Body)
	next := func(kind string) string { // returns the data of the next event of that kind
		for events.Scan() {
			if events.Text() == "event: "+kind {
				for events.Scan() {
					if text, ok := strings.CutPrefix(events.Text(), "data: "); ok {
						return text
					}
				}
			}
		}
		require.Fail(t, "the stream has ended", "before an event of type %s", kind)
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
	for !strings.Contains(next("data"), other.name) { // until the other instance serves the stream
		continue
	}

	// Without any instance there are problems; when one is back, data again.
	other.Signal(t, syscall.SIGKILL)
	for !strings.Contains(next("problem"), `"class":"refused"`) {
		continue
	}
	other.Wait(t, 20*time.Second)
	other.start(t)
	assert.Contains(t, next("data"), other.name)

	require.NoError(t, a.Stop(), "an open stream does not delay the end of service-a")
	for events.Scan() {
		continue
	}
	assert.NoError(t, events.Err(), "the stream ends properly")
}

// A second SIGTERM ends service-b at once, without a drain.
func TestServiceB_SecondSignalEndsIt(t *testing.T) {
	t.Parallel()
	b := startB(t, "b-1", kittest.Loopbacks(t, 1)[0], "DRAIN_DELAY=10m")
	b.Signal(t, syscall.SIGTERM)
	kittest.Eventually(t, func() bool { return strings.Contains(b.Log.String(), `"msg":"draining"`) }, "the first signal starts the drain")
	b.Signal(t, syscall.SIGTERM)
	assert.Equal(t, -1, b.Wait(t, 20*time.Second), "ended by the signal")
}
