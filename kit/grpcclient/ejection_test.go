package grpcclient_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"example.com/tandem/kit/fault"
	"example.com/tandem/kit/grpcclient"
	"example.com/tandem/kit/internal/echo"
	"example.com/tandem/kit/kittest"
)

// faultyPod is a pod with a fault switch.
type faultyPod struct {
	pod
	*fault.Switch
	host  string
	calls *atomic.Int64
}

// startFaultyPods starts three pods behind a name, and a client for them.
func startFaultyPods(t *testing.T, name string, timeout time.Duration) (*grpc.ClientConn, []faultyPod) {
	t.Helper()
	port := kittest.FreePort()
	var pods []faultyPod
	hosts := kittest.Loopbacks(t, 3)
	for _, host := range hosts {
		p := faultyPod{Switch: fault.NewSwitch(true, func(bool) {}), host: host, calls: new(atomic.Int64)}
		serve := func(ctx context.Context) error {
			p.calls.Add(1)
			err := p.Inject(ctx)
			if errors.Is(err, fault.ErrInjected) {
				return status.Error(codes.Unavailable, err.Error())
			}
			return err
		}
		p.pod = start(t, join(host, port), 0, echo.Echo{
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
		pods = append(pods, p)
	}
	names.Set(name, hosts...)
	conn := newClient(t, "dns:///"+name+":"+port, grpcclient.Options{Timeout: timeout})
	awaitPods(t, conn, 3)
	return conn, pods
}

// callAll makes that many calls from each of the workers and returns the number of
// attempts. No call may fail.
func callAll(t *testing.T, conn *grpc.ClientConn, workers, calls int) int64 {
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

// balanced reports whether each of the three pods gets about a third of the calls.
func balanced(t *testing.T, conn *grpc.ClientConn, pods []faultyPod) bool {
	t.Helper()
	by := countByHost(t, conn, 90)
	return !slices.ContainsFunc(pods, func(p faultyPod) bool { return by[p.host] < 25 })
}

// A pod that hangs fails no call. It is ejected, gets one trial after 10 s, and is
// readmitted when it responds.
func TestBalancer_EjectsHungPod(t *testing.T) {
	t.Parallel()
	conn, pods := startFaultyPods(t, "hangs.test", 2*time.Second)
	faulty := pods[0]
	require.NoError(t, say(t.Context(), conn).err)
	faulty.Set(fault.Fault{Latency: 5 * time.Second})

	const workers, calls = 8, 50
	before := faulty.calls.Load()
	assert.LessOrEqual(t, callAll(t, conn, workers, calls), int64(workers*calls+2*workers), "each worker calls the pod once, and few twice")
	assert.LessOrEqual(t, faulty.calls.Load()-before, int64(2*workers))

	before = faulty.calls.Load()
	for begin := time.Now(); time.Since(begin) < 12*time.Second; time.Sleep(5 * time.Millisecond) {
		require.NoError(t, say(t.Context(), conn).err)
	}
	assert.EqualValues(t, 1, faulty.calls.Load()-before, "one trial after 10 s")

	faulty.Set(fault.Fault{})
	kittest.Eventually(t, func() bool { return balanced(t, conn, pods) }, "the pod gets its share again")
}

// A pod that fails 30 % of its calls fails no call. It is ejected, remains so while
// another pod is not serving, and is readmitted when it responds.
func TestBalancer_EjectsFailingPod(t *testing.T) {
	t.Parallel()
	conn, pods := startFaultyPods(t, "fails.test", time.Minute)
	faulty := pods[0]
	faulty.Set(fault.Fault{ErrorRate: 0.3})
	assert.LessOrEqual(t, callAll(t, conn, 1, 600), int64(660))

	before := faulty.calls.Load()
	callAll(t, conn, 1, 300)
	pods[1].health.SetNotReady(true)
	kittest.Eventually(t, func() bool { return countByHost(t, conn, 10)[pods[1].host] == 0 }, "the pod that is not serving gets no calls")
	callAll(t, conn, 1, 100)
	assert.LessOrEqual(t, faulty.calls.Load()-before, int64(1), "a trial, if one is due")
	pods[1].health.SetNotReady(false)

	faulty.Set(fault.Fault{})
	kittest.Eventually(t, func() bool { return balanced(t, conn, pods) }, "the pod gets its share again")
}

// If all pods fail, none stays ejected: the cause is elsewhere. All get their share
// once they respond.
func TestBalancer_KeepsPodsThatAllFail(t *testing.T) {
	for name, injected := range map[string]fault.Fault{
		"fail": {ErrorRate: 1},
		"hang": {Latency: 5 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conn, pods := startFaultyPods(t, "all-"+name+".test", 600*time.Millisecond)
			for _, p := range pods {
				p.Set(injected)
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
			for i, p := range pods {
				before[i] = p.calls.Load()
			}
			for range 15 {
				fails(10)
			}
			for i, p := range pods {
				assert.GreaterOrEqual(t, p.calls.Load()-before[i], int64(10), "of 150 calls")
				p.Set(fault.Fault{})
			}
			kittest.Eventually(t, func() bool { return balanced(t, conn, pods) }, "each pod gets its share")
		})
	}
}

// Streams are not opened to an ejected pod, except for a trial. The first message of
// the trial readmits the pod.
func TestStream_AvoidsEjectedPod(t *testing.T) {
	t.Parallel()
	conn, pods := startFaultyPods(t, "streams.test", time.Minute)
	faulty := pods[0]
	faulty.Set(fault.Fault{ErrorRate: 1})
	callAll(t, conn, 1, 60)
	faulty.Set(fault.Fault{})

	watch := func() string {
		ctx, cancel := context.WithCancel(t.Context())
		t.Cleanup(cancel)
		stream, err := echo.Open(ctx, conn)
		require.NoError(t, err)
		host, err := stream.Recv()
		require.NoError(t, err)
		if host != faulty.host {
			cancel() // the number of streams on one connection is limited
		}
		return host
	}
	for range 30 {
		assert.NotEqual(t, faulty.host, watch())
	}
	kittest.Eventually(t, func() bool { return watch() == faulty.host }, "a stream is the trial of the pod")
	by := map[string]int{}
	for range 30 {
		by[watch()]++
	}
	assert.Equal(t, 10, by[faulty.host], "the first message readmits the pod")
}
