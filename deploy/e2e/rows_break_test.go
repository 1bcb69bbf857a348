package e2e

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// The rows of docs/reliability.md in which something breaks.

// node runs a command on a node of kind's, which is a container.
func (c *cluster) node(ctx context.Context, node, stdin string, command ...string) error {
	cmd := exec.CommandContext(ctx, "docker", append([]string{"exec", "--interactive", node}, command...)...)
	cmd.Stdin = strings.NewReader(stdin)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %s: %w\n%s", node, strings.Join(command, " "), err, out)
	}
	return nil
}

func (c *cluster) isKind() bool { return strings.HasPrefix(c.context, "kind-") }

// needNodes skips a test that must get at the nodes themselves.
func (c *cluster) needNodes(t *testing.T) {
	if !c.isKind() {
		t.Skip("only on kind, whose nodes are containers")
	}
}

// cutOff drops all that a node sends to others, and all that they send to it.
func (c *cluster) cutOff(ctx context.Context, node string) error {
	return c.node(ctx, node, `table inet tandem_e2e {
		chain in  { type filter hook prerouting  priority -300; iifname "eth0" drop; }
		chain out { type filter hook postrouting priority 300;  oifname "eth0" drop; }
	}`, "nft", "--file", "-")
}

// reconnect undoes cutOff, if it was done.
func (c *cluster) reconnect(ctx context.Context, node string) error {
	// To add the table first makes it sure that there is one to delete.
	return c.node(ctx, node, "add table inet tandem_e2e; delete table inet tandem_e2e", "nft", "--file", "-")
}

// signal sends a signal to the process of a pod's container.
func (c *cluster) signal(ctx context.Context, pod corev1.Pod, signal string) error {
	id := strings.TrimPrefix(pod.Status.ContainerStatuses[0].ContainerID, "containerd://")
	return c.node(ctx, pod.Spec.NodeName, "", "ctr", "--namespace", "k8s.io", "tasks", "kill", "--signal", signal, id)
}

func TestWhenAContainerIsKilledCallsAreRetriedAndStreamsResume(t *testing.T) {
	r := newRow(t, 5, "a service-b container killed with SIGKILL, which leaves it no time to drain",
		"no failed call (GET and GetData are retried); streams resume")
	c := connectBusy(t)
	c.needNodes(t)
	defer c.keep(t)
	const interval = 200 * time.Millisecond
	f := c.traffic(t, busy)
	var streams []*listener
	for range 9 {
		streams = append(streams, c.listen(t, interval))
	}
	f.awaitAnswers(t)
	eventually(t, time.Minute, "not all streams run", func(is *assert.CollectT) {
		for _, l := range streams {
			assert.NotEmpty(is, l.pod())
		}
	})
	moved := 0
	for i := range either(r, 3, 6) {
		pods := c.serving(t, serviceB)
		pod := pods[names(pods)[i%len(pods)]]
		on := 0
		for _, l := range streams {
			if l.pod() == pod.Name {
				on++
			}
		}
		moved += on
		before := pod.Status.ContainerStatuses[0]
		start := time.Now()
		require.NoError(t, c.signal(t.Context(), pod, "SIGKILL"))
		eventually(t, 2*time.Minute, "it does not start again", func(is *assert.CollectT) {
			now := c.pods(is, serviceB)[pod.Name]
			require.NotEmpty(is, now.Status.ContainerStatuses)
			assert.Greater(is, now.Status.ContainerStatuses[0].RestartCount, before.RestartCount)
			assert.False(is, readySince(now).IsZero())
		})
		r.fact("%d streams were on it; it was ready again after %s", on, time.Since(start).Round(100*time.Millisecond))
		time.Sleep(3 * time.Second)
	}
	require.Positive(t, moved, "no stream was on a pod that was killed")
	longest := time.Duration(0)
	for i, l := range streams {
		l.mu.Lock()
		longest = max(longest, l.gap)
		assert.Zero(t, l.problems, "stream %d", i)
		assert.Zero(t, l.breaks, "stream %d: the connection to service-a", i)
		assert.Less(t, time.Since(l.last), 2*time.Second+f.stalled(), "stream %d has ended", i)
		assert.Less(t, l.gap, c.callTimeout(t)+interval+f.stalled(), "stream %d stood still", i)
		l.mu.Unlock()
	}
	r.fact("%d streams with an event every %s: the longest gap was %s", len(streams), interval, longest.Round(time.Millisecond))
	r.wantNoneLost(f)
}

// lostPerHang is how many calls over each transport may fail when a pod stops
// responding with 50 calls in flight.
const lostPerHang = 3

const hangBound = "An attempt that gets no response is retried when half of the call's time is over. Behind a virtual IP, the pod of the next connection is chance, so a call can meet the same pod in all its attempts until the pod is no longer ready. gRPC, which knows the pods, ejects the one that hangs."

func TestWhenAContainerHangsCallsGoElsewhere(t *testing.T) {
	const stop = 20 * time.Second
	r := newRow(t, 16, "a service-b container stopped with SIGSTOP for 20 s: it accepts connections, and never responds",
		fmt.Sprintf("at most %d failed calls a stop over each transport; no call takes longer than its deadline", lostPerHang))
	c := connectBusy(t)
	c.needNodes(t)
	defer c.keep(t)
	deadline := c.callTimeout(t)
	f := c.traffic(t, busy)
	f.awaitAnswers(t)
	stops := either(r, 1, 3)
	for i := range stops {
		pods := c.serving(t, serviceB)
		pod := pods[names(pods)[i%len(pods)]]
		// If kubelet restarts the container meanwhile, there is no process to continue.
		resume := func(ctx context.Context) { _ = c.signal(ctx, pod, "SIGCONT") }
		t.Cleanup(func() { resume(context.Background()) })
		before := pod.Status.ContainerStatuses[0].RestartCount
		require.NoError(t, c.signal(t.Context(), pod, "SIGSTOP"))
		start := time.Now()
		eventually(t, stop, "the pod that hangs stays ready", func(is *assert.CollectT) {
			assert.NotContains(is, c.serving(is, serviceB), pod.Name)
		})
		noticed := time.Since(start)
		time.Sleep(stop - noticed)
		resume(t.Context())
		c.settle(t)
		restarts := c.pods(t, serviceB)[pod.Name].Status.ContainerStatuses[0].RestartCount - before
		r.fact("not ready after %s; available again %s after it was continued, minReadySeconds included; restarts: %d", noticed.Round(time.Second), (time.Since(start) - stop).Round(time.Second), restarts)
	}
	time.Sleep(5 * time.Second)
	end := f.now()
	f.stop()
	for _, via := range transports {
		g := r.measured(f.figures(via, "", 0, end))
		assert.LessOrEqual(t, g.failed(), lostPerHang*stops, "%s: %v", via, f.why())
	}
	r.wantNoneHung(f, deadline)
	r.Bound = hangBound
}

func TestWhenANodeIsDrainedNoCallIsLost(t *testing.T) {
	r := newRow(t, 6, "a worker drained", "no failed call, and never fewer pods than the disruption budget allows")
	c := connectBusy(t)
	defer c.keep(t)
	// The node with the most of service-b: two of three, where one may be away.
	_, zone, _ := c.byZone(t, serviceB)
	node := c.zones(t)[zone][0]
	leaving := 0
	for _, service := range []string{serviceA, serviceB} {
		for _, p := range c.serving(t, service) {
			if p.Spec.NodeName == node {
				leaving++
			}
		}
	}
	budget, err := c.PolicyV1().PodDisruptionBudgets(namespace).Get(t.Context(), serviceB, metav1.GetOptions{})
	require.NoError(t, err)
	pods := names(c.serving(t, serviceB))
	f := c.traffic(t, busy)
	f.awaitAnswers(t)

	fewest := c.watchServing(t)
	t.Cleanup(func() { c.level(t) })
	restore(t, "node "+node, func(ctx context.Context) error {
		_, _, err := c.kubectl(ctx, "", "uncordon", node)
		return err
	})
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	start := time.Now()
	_, said, err := c.kubectl(ctx, "", "drain", node, "--ignore-daemonsets", "--delete-emptydir-data")
	require.NoError(t, err)
	took := time.Since(start)
	refused := strings.Count(said, "would violate the pod's disruption budget")
	for _, service := range []string{serviceA, serviceB} {
		for _, p := range c.serving(t, service) {
			assert.NotEqual(t, node, p.Spec.NodeName, p.Name)
		}
	}
	c.settle(t)
	r.fact("%d pods of ours were evicted in %s; %d evictions had to wait for the budget", leaving, took.Round(time.Second), refused)
	for service, least := range fewest() {
		r.fact("%s: never fewer than %d of %d ready", service, least, len(pods))
		assert.GreaterOrEqual(t, least, len(pods)-budget.Spec.MaxUnavailable.IntValue(), service)
	}
	if leaving > 2 {
		assert.Positive(t, refused, "two pods of one service cannot go at once")
	}
	r.wantNoneLost(f)
}

// detection is how long a node may be gone before nobody is sent to its pods:
// node-monitor-grace-period (50 s, from Kubernetes 1.32 on), during which
// kubelet's silence is not yet the node's death, the 5 s of the controller that
// looks, and what it takes for endpoints and nodes to hear of it.
const detection = 65 * time.Second

func TestWhenANodeIsCutOffNoCallHangsAndServiceIsBack(t *testing.T) {
	r := newRow(t, 7, "a worker cut off: its network dropped, without a word",
		fmt.Sprintf("no call of the service-a that is left takes longer than its deadline, and at most one in a hundred fails; from outside all is well after %s at most", detection))
	c := connectBusy(t)
	c.needNodes(t)
	defer c.keep(t)
	t.Cleanup(func() { c.level(t) })
	_, zone, _ := c.byZone(t, serviceB)
	node := c.zones(t)[zone][0] // with the most of service-b
	lost := map[string]int{}
	runsOn := map[string]string{} // nodes, by pod
	var left []string
	for _, service := range []string{serviceA, serviceB} {
		for name, p := range c.serving(t, service) {
			runsOn[name] = p.Spec.NodeName
			if p.Spec.NodeName == node {
				lost[service]++
			} else if service == serviceA {
				left = append(left, name)
			}
		}
	}
	require.NotEmpty(t, left, "all of service-a is on %s", node)
	require.Positive(t, lost[serviceB])
	var counters []string
	for _, pod := range left {
		counters = append(counters, c.forward(t, namespace, pod, 8081))
	}
	deadline := c.callTimeout(t)
	f := c.traffic(t, busy)
	f.awaitAnswers(t)

	restore(t, "the network of "+node, func(ctx context.Context) error { return c.reconnect(ctx, node) })
	before := outcomes(t, counters)
	cut := f.now()
	require.NoError(t, c.cutOff(t.Context(), node))
	for _, service := range []string{serviceB, headless, serviceA} {
		eventually(t, 3*time.Minute, "its pods stay among the endpoints of "+service, func(is *assert.CollectT) {
			for _, pod := range c.endpoints(is, service) {
				assert.NotEqual(is, node, runsOn[pod])
			}
		})
	}
	noticed := f.now()
	r.fact("one worker of two with %d pods of service-a and %d of service-b was cut off; Kubernetes took them out of the endpoints after %s", lost[serviceA], lost[serviceB], (noticed - cut).Round(time.Second))
	time.Sleep(15 * time.Second)
	after := outcomes(t, counters)
	end := f.now()

	for _, via := range transports {
		all, failed := 0.0, 0.0
		for outcome, n := range after[via] {
			n -= before[via][outcome]
			all += n
			if outcome != "ok" {
				failed += n
			}
		}
		r.fact("%s, as counted by the service-a that is left: %.0f calls of service-b, %.0f failed", via, all, failed)
		require.Positive(t, all, via)
		assert.LessOrEqual(t, failed/all, 0.01, "%s: calls of the service-a that is left", via)
		r.measured(f.figures(via, "until the endpoints know", cut, noticed))
		r.measured(f.figures(via, "after it", noticed+5*time.Second, end))
		back := f.lastFailure(via, cut, end)
		longest := time.Duration(0)
		for _, call := range f.between(via, cut, end) {
			if call.class != atTheDoor {
				longest = max(longest, call.took)
			}
		}
		r.fact("%s: the last call failed %s after the cut; the longest that service-a answered took %s", via, (back - cut).Round(time.Second), longest.Round(10*time.Millisecond))
		assert.LessOrEqual(t, longest, deadline+500*time.Millisecond+2*f.stalled(), via)
		assert.LessOrEqual(t, back-cut, detection+f.client.Timeout, via)
	}

	require.NoError(t, c.reconnect(t.Context(), node))
	back := f.now()
	_, _, err := c.kubectl(t.Context(), "", "wait", "--for=condition=Ready", "node/"+node, "--timeout=180s")
	require.NoError(t, err)
	c.settle(t)
	r.fact("all pods ready %s after the network was back", (f.now() - back).Round(time.Second))
	// A service-a that was cut off itself connects to service-b again within the 2 s
	// that package grpcclient waits at most between dials, or fails calls until then.
	time.Sleep(2 * time.Second)
	back = f.now()
	time.Sleep(10 * time.Second)
	end = f.now()
	f.stop()
	for _, via := range transports {
		g := r.measured(f.figures(via, "once it is back", back, end))
		assert.Empty(t, g.Failed, "%s: %v", via, f.why())
	}
	r.Bound = "A call that in all its attempts meets pods that are gone fails: two thirds of them are. What else is lost is lost at the door: a virtual IP sends new connections to service-a's dead pods until Kubernetes takes the node for dead. A gateway or mesh that ejects outliers and retries (as service-a does towards service-b) lowers it to about a second; so do more replicas, in share. A shorter --node-monitor-grace-period is not to be had on AKS."
}

// outcomes of the calls that some pods of service-a have made, by transport.
func outcomes(t *testing.T, admins []string) map[string]map[string]float64 {
	t.Helper()
	out := map[string]map[string]float64{"http": {}, "grpc": {}}
	for _, admin := range admins {
		for _, m := range scrape(t, admin) {
			if m.name == "calls_total" {
				out[m.labels["transport"]][m.labels["outcome"]] += m.value
			}
		}
	}
	return out
}

func TestWhenAPodIsSlowMostCallsAreNot(t *testing.T) {
	r := newRow(t, 9, "service-b made slow: 5 s on one pod of three",
		fmt.Sprintf("no call takes longer than the deadline, and at most %d fail over each transport; at most that pod's share is slow, and less once it is noticed", lostPerHang))
	c := connectBusy(t)
	defer c.keep(t)
	deadline := c.callTimeout(t)
	f := c.traffic(t, busy)
	f.awaitAnswers(t)
	pods := names(c.serving(t, serviceB))
	sicken(t, c.debug(t, pods[0]), `{"latency":"5s"}`)
	start := f.now()
	const soon = 5 * time.Second
	time.Sleep(soon + either(r, 25*time.Second, 115*time.Second))
	end := f.now()
	f.stop()
	slow := deadline / 4 // far above what an answer takes, far below what an attempt may
	share := 1 / float64(len(pods))
	for _, via := range transports {
		lost := 0
		for _, span := range []struct {
			during   string
			from, to time.Duration
			share    float64
		}{
			{"the first 5 s", start, start + soon, share},
			{"after that", start + soon, end, share / 4},
		} {
			g := r.measured(f.figures(via, span.during, span.from, span.to))
			got := slower(f.between(via, span.from, span.to), slow)
			r.fact("%s, %s: %.1f %% of the calls took more than %s", via, span.during, 100*got, slow)
			assert.LessOrEqual(t, got, span.share, "%s, %s", via, span.during)
			lost += g.failed()
		}
		assert.LessOrEqual(t, lost, lostPerHang, "%s: slow attempts are retried at another pod: %v", via, f.why())
	}
	r.wantNoneHung(f, deadline)
	r.Bound = hangBound
}

func TestWhenAPodAnswersErrorsTheyAreRetriedAway(t *testing.T) {
	r := newRow(t, 10, "service-b answers errors: 30 % on one pod of three", "retried away within the budget: at most 3 calls of 1,000 fail")
	c := connectBusy(t)
	defer c.keep(t)
	f := c.traffic(t, busy)
	f.awaitAnswers(t)
	sicken(t, c.debug(t, names(c.serving(t, serviceB))[0]), slowFault(`,"errorRate":0.3`))
	time.Sleep(either(r, 30*time.Second, 120*time.Second))
	end := f.now()
	f.stop()
	for _, via := range transports {
		g := r.measured(f.figures(via, "", 0, end))
		assert.LessOrEqual(t, float64(g.failed())/float64(g.Calls), 0.003, "%s: %v", via, f.why())
	}
	r.Bound = "Behind a virtual IP, the pod of a new connection is chance: if all three attempts were made on new ones, one call of 1,000 would meet the sick pod's errors three times (a third of 30 %, to the third power). gRPC, which knows the pods, leaves the sick one out. A mesh's proxies, or more replicas, lower it over HTTP."
}

func TestWhenDNSIsAwayKnownNamesStillWork(t *testing.T) {
	r := newRow(t, 11, "CoreDNS deleted, and made again",
		"no failed call of those who know the name; who asks for the first time gets an answer within the deadline or the class dns")
	c := connectBusy(t)
	defer c.keep(t)
	d, err := c.AppsV1().Deployments(systemNamespace).Get(t.Context(), coreDNS, metav1.GetOptions{})
	require.NoError(t, err)
	scale := func(ctx context.Context, n int32) error { return c.scaleIn(ctx, systemNamespace, coreDNS, n) }
	restore(t, "CoreDNS", func(ctx context.Context) error { return scale(ctx, *d.Spec.Replicas) })
	age := c.maxConnectionAge(t)
	f := c.traffic(t, busy)
	f.awaitAnswers(t)

	require.NoError(t, scale(t.Context(), 0))
	eventually(t, time.Minute, "CoreDNS stays", func(is *assert.CollectT) {
		pods, err := c.CoreV1().Pods(systemNamespace).List(context.Background(), metav1.ListOptions{LabelSelector: "k8s-app=kube-dns"})
		require.NoError(is, err)
		assert.Empty(is, pods.Items)
	})
	gone := f.now()
	// A process of its own, which has asked for no name before.
	newcomer := c.probe(namespace, "deploy/"+serviceA, "http://"+serviceB+"/health", brief)
	assert.Equal(t, "dns", newcomer.class, newcomer.words)
	r.fact("who asks for the first time gets the class %s", newcomer.class)
	time.Sleep(age*11/10 + 5*time.Second - (f.now() - gone)) // every connection is made anew meanwhile
	require.NoError(t, scale(t.Context(), *d.Spec.Replicas))
	back := f.now()
	_, _, err = c.kubectl(t.Context(), "", "--namespace", systemNamespace, "rollout", "status", "deployment/"+coreDNS, "--timeout=120s")
	require.NoError(t, err)
	r.fact("there was no DNS for %s, longer than a connection lives (%s)", (f.now() - gone).Round(time.Second), age)
	time.Sleep(10 * time.Second)
	end := f.now()
	f.stop()
	for _, via := range transports {
		g := r.measured(f.figures(via, "without DNS", gone, back))
		assert.Empty(t, g.Failed, "%s: %v", via, f.why())
		assert.Empty(t, f.figures(via, "", back, end).Failed, "%s, once it is back: %v", via, f.why())
	}
	c.mayAsk(t, namespace, "deploy/"+serviceA, "http://"+serviceB+"/health")
}
