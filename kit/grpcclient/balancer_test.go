package grpcclient_test

import (
	"context"
	"maps"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"example.com/tandem/kit/call"
	"example.com/tandem/kit/grpcclient"
	"example.com/tandem/kit/internal/echo"
	"example.com/tandem/kit/kittest"
)

// Each address behind a name gets its share of the calls.
func TestBalancer_SpreadsCallsEvenly(t *testing.T) {
	port, hosts := kittest.FreePort(), kittest.Loopbacks(t, 3)
	for _, host := range hosts {
		start(t, join(host, port), 0, echo.Echo{})
	}
	names.Set("spread.test", hosts...)
	conn := newClient(t, "dns:///spread.test:"+port, grpcclient.Options{})
	awaitPods(t, conn, 3)
	by := countByHost(t, conn, 300)
	for _, host := range hosts {
		assert.InDelta(t, 100, by[host], 25, "%v", by)
	}
	assert.ElementsMatch(t, []string{join(hosts[0], port), join(hosts[1], port), join(hosts[2], port)}, say(t.Context(), conn).Addresses)
}

// A server that is NOT_SERVING or draining gets no calls. When it is SERVING again,
// it gets its share.
func TestBalancer_SkipsNotServing(t *testing.T) {
	port, hosts := kittest.FreePort(), kittest.Loopbacks(t, 3)
	var pods []pod
	for _, host := range hosts {
		pods = append(pods, start(t, join(host, port), 0, echo.Echo{}))
	}
	names.Set("not-serving.test", hosts...)
	conn := newClient(t, "dns:///not-serving.test:"+port, grpcclient.Options{})
	awaitPods(t, conn, 3)

	pods[0].health.SetNotReady(true)
	skipped := func() bool { return countByHost(t, conn, 100)[hosts[0]] == 0 }
	kittest.Eventually(t, skipped, "the server that is not serving gets no calls")
	assert.ElementsMatch(t, hosts[1:], slices.Collect(maps.Keys(countByHost(t, conn, 300))))

	pods[0].health.SetNotReady(false)
	kittest.Eventually(t, func() bool { return countByHost(t, conn, 90)[hosts[0]] >= 20 }, "the server gets its share again")

	pods[1].health.Drain()
	kittest.Eventually(t, func() bool { return countByHost(t, conn, 100)[hosts[1]] == 0 }, "the draining server gets no calls")
}

// A new address gets its share once the servers have closed connections that
// reached their maximum age: the client looks the name up when a connection ends.
func TestBalancer_FindsNewAddress(t *testing.T) {
	t.Parallel()
	port, hosts := kittest.FreePort(), kittest.Loopbacks(t, 4)
	for _, host := range hosts {
		start(t, join(host, port), 2*time.Second, echo.Echo{})
	}
	names.Set("join.test", hosts[:3]...)
	conn := newClient(t, "dns:///join.test:"+port, grpcclient.Options{})
	awaitPods(t, conn, 3)

	names.Set("join.test", hosts...)
	begin := time.Now()
	for time.Since(begin) < 2*time.Minute && countByHost(t, conn, 40)[hosts[3]] < 5 {
		time.Sleep(50 * time.Millisecond)
	}
	by := countByHost(t, conn, 400)
	assert.GreaterOrEqual(t, by[hosts[3]], 50, "half of a fair share: %v", by)
	assert.Len(t, by, 4)
}

// An address at which nothing listens fails no call.
func TestBalancer_DeadAddressFailsNoCall(t *testing.T) {
	port, hosts := kittest.FreePort(), kittest.Loopbacks(t, 3)
	for _, host := range hosts[1:] {
		start(t, join(host, port), 0, echo.Echo{})
	}
	names.Set("dead.test", hosts...)
	conn := newClient(t, "dns:///dead.test:"+port, grpcclient.Options{})
	assert.NotContains(t, countByHost(t, conn, 300), hosts[0])
}

// A call that a server failed with UNAVAILABLE has class unavailable, although a
// second address of the name refuses connections.
func TestClassify_FailureOfServer(t *testing.T) {
	port, hosts := kittest.FreePort(), kittest.Loopbacks(t, 2)
	service, _ := failing(1<<40, codes.Unavailable)
	start(t, join(hosts[0], port), 0, service)
	names.Set("half.test", hosts...)
	conn := newClient(t, "dns:///half.test:"+port, grpcclient.Options{})
	for begin := time.Now(); time.Since(begin) < time.Second; { // meanwhile the client dials the dead address again
		r := say(t.Context(), conn)
		require.Equal(t, call.Unavailable, r.class, "%v", r.err)
		require.Equal(t, join(hosts[0], port), r.Peer)
	}
}

// A pod that fails at once has the fewest pending requests. That does not attract
// more calls to it.
func TestBalancer_FastFailuresAttractNoCalls(t *testing.T) {
	port, hosts := kittest.FreePort(), kittest.Loopbacks(t, 3)
	var failing atomic.Bool
	for i, host := range hosts {
		start(t, join(host, port), 0, echo.Echo{Say: func(context.Context, string) (string, error) {
			if i == 0 && failing.Load() {
				return "", status.Error(codes.Internal, "internal error") // not retried
			}
			time.Sleep(10 * time.Millisecond)
			return host, nil
		}})
	}
	names.Set("attracts.test", hosts...)
	conn := newClient(t, "dns:///attracts.test:"+port, grpcclient.Options{})
	awaitPods(t, conn, 3)

	failing.Store(true)
	var callers sync.WaitGroup
	var failed atomic.Int64
	for range 20 {
		callers.Go(func() {
			for range 50 {
				if say(t.Context(), conn).err != nil {
					failed.Add(1)
				}
			}
		})
	}
	callers.Wait()
	assert.Less(t, failed.Load(), int64(100), "of 1000, a third of which is its share")
}

// A pod whose node vanishes, so that its connections are open but silent, fails no
// call and costs few retries.
func TestBalancer_VanishedNodeFailsNoCall(t *testing.T) {
	port, hosts := kittest.FreePort(), kittest.Loopbacks(t, 3)
	for _, host := range hosts[1:] {
		start(t, join(host, port), 0, echo.Echo{})
	}
	vanish := node(t, join(hosts[0], port), start(t, "127.0.0.1:0", 0, echo.Echo{}).Addr().String())
	names.Set("vanishes.test", hosts...)
	conn := newClient(t, "dns:///vanishes.test:"+port, grpcclient.Options{Timeout: 2 * time.Second})
	awaitPods(t, conn, 3)
	vanish()
	assert.LessOrEqual(t, callAll(t, conn, 1, 300), int64(302))
}

// node forwards connections to a pod. After vanish, it discards what it receives and
// keeps the connections open.
func node(t *testing.T, addr, pod string) (vanish func()) {
	t.Helper()
	var gone atomic.Bool
	pass := func(to, from net.Conn) {
		defer to.Close() //nolint:errcheck // the other direction may have closed it
		buf := make([]byte, 4096)
		for {
			n, err := from.Read(buf)
			if err != nil {
				return
			}
			if gone.Load() {
				continue
			}
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
	}
	l, err := net.Listen("tcp", addr)
	require.NoError(t, err)
	var all sync.WaitGroup
	all.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", pod)
			if err != nil {
				_ = client.Close() // the pod has stopped
				continue
			}
			all.Go(func() { pass(client, server) })
			all.Go(func() { pass(server, client) })
		}
	})
	t.Cleanup(func() { // after the client, which closes the connections
		assert.NoError(t, l.Close())
		all.Wait()
	})
	return func() { gone.Store(true) }
}

// A name that had a single address gets more. The first connection does not watch health,
// and no call fails when its server drains.
func TestBalancer_FirstAddressDrains(t *testing.T) {
	t.Parallel()
	port, hosts := kittest.FreePort(), kittest.Loopbacks(t, 2)
	first := start(t, join(hosts[0], port), 0, echo.Echo{})
	start(t, join(hosts[1], port), 0, echo.Echo{})
	names.Set("first-drains.test", hosts[0])
	conn := newClient(t, "dns:///first-drains.test:"+port, grpcclient.Options{})
	require.NoError(t, say(t.Context(), conn).err)
	names.Set("first-drains.test", hosts...)
	require.Eventually(t, func() bool { return len(countByHost(t, conn, 10)) == 2 }, time.Minute, 100*time.Millisecond, "the name is looked up again")

	defer keepCalling(t.Context(), conn, func(err error) { assert.NoError(t, err) })()
	first.health.Drain()
	assert.NoError(t, first.Shutdown(t.Context()))
	kittest.Eventually(t, func() bool { return countByHost(t, conn, 10)[hosts[0]] == 0 }, "no call reaches the stopped server")
}
