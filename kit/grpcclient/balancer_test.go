package grpcclient_test

import (
	"context"
	"errors"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"example.com/tandem/kit/call"
	"example.com/tandem/kit/fault"
	"example.com/tandem/kit/grpcclient"
	"example.com/tandem/kit/internal/echo"
	"example.com/tandem/kit/kittest"
)

func TestCallsAreSpreadEvenlyOverAllAddressesOfAName(t *testing.T) {
	port, hosts := kittest.FreePort(), kittest.Loopbacks(t, 3)
	for _, host := range hosts {
		start(t, join(host, port), 0, echo.Echo{})
	}
	names.Set("spread.test", hosts...)
	conn := newClient(t, "dns:///spread.test:"+port, grpcclient.Options{})
	kittest.Eventually(t, func() bool { return len(round(t, conn, 10)) == 3 }, "all three are connected to")
	by := round(t, conn, 300)
	for _, host := range hosts {
		assert.InDelta(t, 100, by[host], 25, "%v", by)
	}
	assert.ElementsMatch(t, []string{join(hosts[0], port), join(hosts[1], port), join(hosts[2], port)}, say(t.Context(), conn).Addresses)
}

func TestServerThatIsNotServingGetsNothingUntilItIsAgain(t *testing.T) {
	port, hosts := kittest.FreePort(), kittest.Loopbacks(t, 3)
	var pods []pod
	for _, host := range hosts {
		pods = append(pods, start(t, join(host, port), 0, echo.Echo{}))
	}
	names.Set("sick.test", hosts...)
	conn := newClient(t, "dns:///sick.test:"+port, grpcclient.Options{})
	kittest.Eventually(t, func() bool { return len(round(t, conn, 10)) == 3 }, "all three are connected to")

	pods[0].health.SetNotReady(true)
	healthy := func() bool { return round(t, conn, 100)[hosts[0]] == 0 }
	kittest.Eventually(t, healthy, "the sick one gets nothing more")
	assert.ElementsMatch(t, hosts[1:], slices.Collect(maps.Keys(round(t, conn, 300))))

	pods[0].health.SetNotReady(false)
	kittest.Eventually(t, func() bool { return round(t, conn, 90)[hosts[0]] >= 20 }, "it has its share again")

	pods[1].health.Drain()
	kittest.Eventually(t, func() bool { return round(t, conn, 100)[hosts[1]] == 0 }, "the draining one gets nothing more")
}

func TestNewAddressGetsItsShareOnceConnectionsHaveAged(t *testing.T) {
	t.Parallel()
	port, hosts := kittest.FreePort(), kittest.Loopbacks(t, 4)
	for _, host := range hosts {
		start(t, join(host, port), 2*time.Second, echo.Echo{})
	}
	names.Set("join.test", hosts[:3]...)
	conn := newClient(t, "dns:///join.test:"+port, grpcclient.Options{})
	kittest.Eventually(t, func() bool { return len(round(t, conn, 10)) == 3 }, "all three are connected to")

	// gRPC asks DNS again when a connection is lost, which MaxConnectionAge sees
	// to.
	names.Set("join.test", hosts...)
	begin := time.Now()
	for time.Since(begin) < 2*time.Minute && round(t, conn, 40)[hosts[3]] < 5 {
		time.Sleep(50 * time.Millisecond)
	}
	by := round(t, conn, 400)
	assert.GreaterOrEqual(t, by[hosts[3]], 50, "half of a fair share: %v", by)
	assert.Len(t, by, 4)
}

func TestDeadAddressFailsNoCall(t *testing.T) {
	port, hosts := kittest.FreePort(), kittest.Loopbacks(t, 3)
	for _, host := range hosts[1:] {
		start(t, join(host, port), 0, echo.Echo{})
	}
	names.Set("dead.test", hosts...)
	conn := newClient(t, "dns:///dead.test:"+port, grpcclient.Options{})
	assert.NotContains(t, round(t, conn, 300), hosts[0])
}

func TestServersOwnFailureIsNotTakenForADeadAddress(t *testing.T) {
	port, hosts := kittest.FreePort(), kittest.Loopbacks(t, 2)
	service, _ := failing(1<<40, codes.Unavailable)
	start(t, join(hosts[0], port), 0, service)
	names.Set("half.test", hosts...)
	conn := newClient(t, "dns:///half.test:"+port, grpcclient.Options{})
	for begin := time.Now(); time.Since(begin) < time.Second; { // meanwhile the dead one is dialled again
		r := say(t.Context(), conn)
		require.Equal(t, call.Unavailable, r.class, "%v", r.err)
		require.Equal(t, join(hosts[0], port), r.Peer)
	}
}

// sickly is a pod that faults can be set at.
type sickly struct {
	pod
	*fault.Switch
	host  string
	asked *atomic.Int64
}

// ward starts three of them behind a name, and a client of theirs.
func ward(t *testing.T, name string, timeout time.Duration) (*grpc.ClientConn, []sickly) {
	t.Helper()
	port := kittest.FreePort()
	var pods []sickly
	hosts := kittest.Loopbacks(t, 3)
	for _, host := range hosts {
		s := sickly{Switch: fault.NewSwitch(true, func(bool) {}), host: host, asked: new(atomic.Int64)}
		serve := func(ctx context.Context) error {
			s.asked.Add(1)
			err := s.Inject(ctx)
			if errors.Is(err, fault.ErrInjected) {
				return status.Error(codes.Unavailable, err.Error())
			}
			return err
		}
		s.pod = start(t, join(host, port), 0, echo.Echo{
			Say: func(ctx context.Context, _ string) (string, error) { return "", serve(ctx) },
			Watch: func(ss grpc.ServerStream) error {
				if err := serve(ss.Context()); err != nil {
					return err
				}
				if err := echo.Send(ss, host); err != nil {
					return err
				}
				<-ss.Context().Done()
				return nil
			},
		})
		pods = append(pods, s)
	}
	names.Set(name, hosts...)
	conn := newClient(t, "dns:///"+name+":"+port, grpcclient.Options{Timeout: timeout})
	kittest.Eventually(t, func() bool { return len(round(t, conn, 10)) == 3 }, "all three are connected to")
	return conn, pods
}

// rush makes calls side by side, which must not fail, and returns how many
// attempts they took.
func rush(t *testing.T, conn *grpc.ClientConn, workers, calls int) int64 {
	t.Helper()
	var attempts atomic.Int64
	var all sync.WaitGroup
	for range workers {
		all.Go(func() {
			for range calls {
				r := say(t.Context(), conn)
				assert.NoError(t, r.err)
				attempts.Add(int64(r.Attempts))
			}
		})
	}
	all.Wait()
	return attempts.Load()
}

// has its share: a third, more or less.
func fairly(t *testing.T, conn *grpc.ClientConn, pods []sickly) bool {
	t.Helper()
	by := round(t, conn, 90)
	return !slices.ContainsFunc(pods, func(s sickly) bool { return by[s.host] < 25 })
}

func TestPodThatHangsFailsNoCallAndIsLeftOut(t *testing.T) {
	t.Parallel()
	conn, pods := ward(t, "hangs.test", 2*time.Second)
	sick := pods[0]
	require.NoError(t, say(t.Context(), conn).err)
	sick.Set(fault.Fault{Latency: 5 * time.Second})

	const workers, calls = 8, 50
	before := sick.asked.Load()
	assert.LessOrEqual(t, rush(t, conn, workers, calls), int64(workers*calls+2*workers), "each meets it once, and few twice")
	assert.LessOrEqual(t, sick.asked.Load()-before, int64(2*workers))

	before = sick.asked.Load()
	for begin := time.Now(); time.Since(begin) < 12*time.Second; time.Sleep(5 * time.Millisecond) {
		require.NoError(t, say(t.Context(), conn).err)
	}
	assert.EqualValues(t, 1, sick.asked.Load()-before, "the trial after 10 s")

	sick.Set(fault.Fault{})
	kittest.Eventually(t, func() bool { return fairly(t, conn, pods) }, "it has its share again")
}

func TestPodThatFailsOftenFailsNoCallAndIsLeftOut(t *testing.T) {
	t.Parallel()
	conn, pods := ward(t, "fails.test", time.Minute)
	sick := pods[0]
	sick.Set(fault.Fault{ErrorRate: 0.3})
	assert.LessOrEqual(t, rush(t, conn, 1, 600), int64(660))

	before := sick.asked.Load()
	rush(t, conn, 1, 300)
	pods[1].health.SetNotReady(true)
	kittest.Eventually(t, func() bool { return round(t, conn, 10)[pods[1].host] == 0 }, "another is not serving")
	rush(t, conn, 1, 100)
	assert.LessOrEqual(t, sick.asked.Load()-before, int64(1), "a trial, if it is time")
	pods[1].health.SetNotReady(false)

	sick.Set(fault.Fault{})
	kittest.Eventually(t, func() bool { return fairly(t, conn, pods) }, "it has its share again")
}

// Where all pods fail, none stays ejected: the pods are not the cause. All serve
// once they can.
func TestBalancer_KeepsPodsThatAllFail(t *testing.T) {
	for name, sick := range map[string]fault.Fault{
		"they fail": {ErrorRate: 1},
		"they hang": {Latency: 5 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conn, pods := ward(t, strings.ReplaceAll(name, " ", "-")+".test", 600*time.Millisecond)
			for _, s := range pods {
				s.Set(sick)
			}
			fails := func(calls int) {
				var all sync.WaitGroup
				for range calls {
					all.Go(func() { assert.Error(t, say(t.Context(), conn).err) })
				}
				all.Wait()
			}
			fails(60)
			before := make([]int64, len(pods))
			for i, s := range pods {
				before[i] = s.asked.Load()
			}
			for range 15 {
				fails(10)
			}
			for i, s := range pods {
				assert.GreaterOrEqual(t, s.asked.Load()-before[i], int64(10), "of 150")
				s.Set(fault.Fault{})
			}
			kittest.Eventually(t, func() bool { return fairly(t, conn, pods) }, "one is left out")
		})
	}
}

func TestStreamsKeepClearOfAPodThatIsLeftOutAndBringItBack(t *testing.T) {
	t.Parallel()
	conn, pods := ward(t, "streams.test", time.Minute)
	sick := pods[0]
	sick.Set(fault.Fault{ErrorRate: 1})
	rush(t, conn, 1, 60)
	sick.Set(fault.Fault{})

	watch := func() string {
		ctx, cancel := context.WithCancel(t.Context())
		t.Cleanup(cancel)
		stream, err := echo.Open(ctx, conn)
		require.NoError(t, err)
		host, err := stream.Recv()
		require.NoError(t, err)
		if host != sick.host {
			cancel() // a connection carries so many streams, and the others take one each
		}
		return host
	}
	for range 30 {
		assert.NotEqual(t, sick.host, watch())
	}
	kittest.Eventually(t, func() bool { return watch() == sick.host }, "a stream is its trial")
	by := map[string]int{}
	for range 30 {
		by[watch()]++
	}
	assert.Equal(t, 10, by[sick.host], "its first message is an answer")
}

func TestPodWhoseNodeVanishesFailsNoCall(t *testing.T) {
	port, hosts := kittest.FreePort(), kittest.Loopbacks(t, 3)
	for _, host := range hosts[1:] {
		start(t, join(host, port), 0, echo.Echo{})
	}
	vanish := node(t, join(hosts[0], port), start(t, "127.0.0.1:0", 0, echo.Echo{}).Addr().String())
	names.Set("vanishes.test", hosts...)
	conn := newClient(t, "dns:///vanishes.test:"+port, grpcclient.Options{Timeout: 2 * time.Second})
	kittest.Eventually(t, func() bool { return len(round(t, conn, 10)) == 3 }, "all three are connected to")
	vanish()
	assert.LessOrEqual(t, rush(t, conn, 1, 300), int64(302))
}

// node forwards connections, until it vanishes: then nothing passes, and no one
// is told.
func node(t *testing.T, addr, pod string) (vanish func()) {
	t.Helper()
	var gone atomic.Bool
	pass := func(to, from net.Conn) {
		defer to.Close() //nolint:errcheck // the other side has left
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

// Its answers are ready at once, so that the fewest attempts wait there.
func TestPodThatFailsAtOnceDoesNotAttractCalls(t *testing.T) {
	port, hosts := kittest.FreePort(), kittest.Loopbacks(t, 3)
	var sick atomic.Bool
	for i, host := range hosts {
		start(t, join(host, port), 0, echo.Echo{Say: func(context.Context, string) (string, error) {
			if i == 0 && sick.Load() {
				return "", status.Error(codes.Internal, "a fault of mine") // which is not retried
			}
			time.Sleep(10 * time.Millisecond)
			return host, nil
		}})
	}
	names.Set("attracts.test", hosts...)
	conn := newClient(t, "dns:///attracts.test:"+port, grpcclient.Options{})
	kittest.Eventually(t, func() bool { return len(round(t, conn, 10)) == 3 }, "not all are asked")

	sick.Store(true)
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
	assert.Less(t, failed.Load(), int64(100), "of 1000: a third would be its share")
}
