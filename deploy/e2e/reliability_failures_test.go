package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"example.com/tandem/deploy/e2e/load"
)

// The rows of docs/reliability.md in which something breaks.

// Calls of a killed container are retried, and its streams resume elsewhere.
func TestReliability_ContainerKilled(t *testing.T) {
	r := newRow(t, 5, "a service-b container killed with SIGKILL, so that it cannot drain",
		"no failed call, because GET and GetData are retried; streams resume")
	c := connectBusy(t)
	c.requireKind(t)
	defer c.saveOnFailure(t)
	const interval = 200 * time.Millisecond
	g := c.startLoad(t, busyLoad)
	var streams []*load.Stream
	for range 9 {
		stream := load.Follow(fmt.Sprintf("%s/api/stream?interval=%s", c.url, interval))
		t.Cleanup(stream.Stop)
		streams = append(streams, stream)
	}
	awaitSuccess(t, g)
	eventually(t, time.Minute, "not every stream has events", func(is *assert.CollectT) {
		for _, stream := range streams {
			assert.NotEmpty(is, stream.Stats().Pod)
		}
	})
	moved := 0
	for i := range byForm(r, 3, 6) {
		pods := c.readyPods(t, serviceB)
		pod := pods[sortedKeys(pods)[i%len(pods)]]
		on := 0
		for _, stream := range streams {
			if stream.Stats().Pod == pod.Name {
				on++
			}
		}
		moved += on
		before := pod.Status.ContainerStatuses[0]
		start := time.Now()
		require.NoError(t, c.signal(t.Context(), pod, "SIGKILL"))
		eventually(t, 2*time.Minute, "the container does not restart", func(is *assert.CollectT) {
			now := c.pods(is, serviceB)[pod.Name]
			require.NotEmpty(is, now.Status.ContainerStatuses)
			assert.Greater(is, now.Status.ContainerStatuses[0].RestartCount, before.RestartCount)
			assert.False(is, readySince(now).IsZero())
		})
		r.addFact("the container had %d streams, and was ready again after %s", on, time.Since(start).Round(100*time.Millisecond))
		time.Sleep(3 * time.Second)
	}
	require.Positive(t, moved, "no killed container had a stream")
	longest := time.Duration(0)
	for i, stream := range streams {
		stats := stream.Stats()
		longest = max(longest, stats.Gap)
		assert.Zero(t, stats.Problems, "stream %d: events that report an error", i)
		assert.Zero(t, stats.Disconnects, "stream %d: the connection to service-a ended", i)
		assert.Less(t, time.Since(stats.Last), 2*time.Second+g.Stalled(), "stream %d has ended", i)
		assert.Less(t, stats.Gap, c.callTimeout(t)+interval+g.Stalled(), "stream %d had no event for too long", i)
	}
	r.addFact("%d streams with an event every %s: the longest gap was %s", len(streams), interval, longest.Round(time.Millisecond))
	r.requireNoFailedCall(g)
}

// failedPerHang is how many calls may fail when one pod of three stops responding with
// 50 calls in flight. gRPC retries at another pod. HTTP retries on a connection that has
// served, or on a new one, which leads to any pod. If the machine is so busy that no
// connection is idle, each of the 17 calls at the pod fails with a probability of 1/9: two
// on average, and more than 8 once in 37,000 times.
var failedPerHang = map[string]int{"http": 8, "grpc": 3}

var fewFail = fmt.Sprintf("at most %d calls fail over HTTP and %d over gRPC", failedPerHang["http"], failedPerHang["grpc"])

const hangLimits = "An attempt without a response is retried when half of the call's time has passed. Behind a virtual IP, the pod of the next connection is random, so all attempts of a call can reach the same pod until that pod is no longer ready. gRPC knows the pods and ejects the one that hangs."

// A stopped process accepts connections but never responds: attempts are retried at
// other pods.
func TestReliability_ContainerHangs(t *testing.T) {
	const stop = 20 * time.Second
	r := newRow(t, 16, "a service-b container stopped with SIGSTOP for 20 s: it accepts connections but never responds",
		fewFail+", for each stop; no call takes longer than its deadline")
	c := connectBusy(t)
	c.requireKind(t)
	defer c.saveOnFailure(t)
	deadline := c.callTimeout(t)
	g := c.startBusyLoad(t)
	stops := byForm(r, 1, 3)
	for i := range stops {
		pods := c.readyPods(t, serviceB)
		pod := pods[sortedKeys(pods)[i%len(pods)]]
		// It fails if kubelet has restarted the container meanwhile.
		resume := func(ctx context.Context) { _ = c.signal(ctx, pod, "SIGCONT") }
		t.Cleanup(func() { resume(context.Background()) })
		before := pod.Status.ContainerStatuses[0].RestartCount
		require.NoError(t, c.signal(t.Context(), pod, "SIGSTOP"))
		start := time.Now()
		eventually(t, stop, "the hanging pod remains ready", func(is *assert.CollectT) {
			assert.NotContains(is, c.readyPods(is, serviceB), pod.Name)
		})
		noticed := time.Since(start)
		time.Sleep(stop - noticed)
		resume(t.Context())
		c.settle(t)
		restarts := c.pods(t, serviceB)[pod.Name].Status.ContainerStatuses[0].RestartCount - before
		r.addFact("not ready after %s; available %s after SIGCONT, minReadySeconds included; restarts: %d",
			noticed.Round(time.Second), (time.Since(start) - stop).Round(time.Second), restarts)
	}
	time.Sleep(5 * time.Second)
	end := g.Elapsed()
	g.Stop()
	for _, via := range transports {
		f := r.addFigures(g.Figures(via, "", 0, end))
		assert.LessOrEqual(t, f.TotalFailed(), failedPerHang[via]*stops, "%s: %v", via, g.Examples())
	}
	r.requireWithinDeadline(g, deadline)
	r.Limits = hangLimits
}

func TestReliability_NodeDrained(t *testing.T) {
	r := newRow(t, 6, "a worker node drained", "no failed call, and never fewer ready pods than the PodDisruptionBudget allows")
	c := connectBusy(t)
	defer c.saveOnFailure(t)
	// The node with two of the three pods of service-b, of which one may be unavailable.
	_, zone, _ := c.podsByZone(t, serviceB)
	node := c.zones(t)[zone][0]
	leaving := 0
	for _, service := range services {
		for _, p := range c.readyPods(t, service) {
			if p.Spec.NodeName == node {
				leaving++
			}
		}
	}
	budget, err := c.PolicyV1().PodDisruptionBudgets(namespace).Get(t.Context(), serviceB, metav1.GetOptions{})
	require.NoError(t, err)
	pods := sortedKeys(c.readyPods(t, serviceB))
	g := c.startBusyLoad(t)

	fewest := c.watchReadyPods(t)
	t.Cleanup(func() { c.rebalance(t) })
	restore(t, "node "+node, func(ctx context.Context) error {
		_, _, err := c.kubectl(ctx, "", "uncordon", node)
		return err
	})
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	start := time.Now()
	_, messages, err := c.kubectl(ctx, "", "drain", node, "--ignore-daemonsets", "--delete-emptydir-data")
	require.NoError(t, err)
	took := time.Since(start)
	refused := strings.Count(messages, "would violate the pod's disruption budget")
	for _, service := range services {
		for _, p := range c.readyPods(t, service) {
			assert.NotEqual(t, node, p.Spec.NodeName, p.Name)
		}
	}
	c.settle(t)
	r.addFact("%d pods of the services were evicted in %s; %d evictions had to wait for the budget", leaving, took.Round(time.Second), refused)
	for service, least := range fewest() {
		r.addFact("%s: never fewer than %d of %d ready", service, least, len(pods))
		assert.GreaterOrEqual(t, least, len(pods)-budget.Spec.MaxUnavailable.IntValue(), service)
	}
	if leaving > 2 {
		assert.Positive(t, refused, "two pods of one service cannot go at once")
	}
	r.requireNoFailedCall(g)
}

// detection is how long Kubernetes may send calls to the pods of a lost node: the
// node-monitor-grace-period (50 s from Kubernetes 1.32 on), the controller's
// interval of 5 s, and 10 s until endpoints and nodes are updated.
const detection = 65 * time.Second

// When a node loses its network, calls end within their deadline, and all succeed once
// Kubernetes has removed the node's pods.
func TestReliability_NodeCutOff(t *testing.T) {
	r := newRow(t, 7, "a worker node cut off: its network drops all packets",
		fmt.Sprintf("calls by the remaining pods of service-a end within their deadline, and at most one in a hundred fails; calls from outside succeed after %s at most", detection))
	c := connectBusy(t)
	c.requireKind(t)
	defer c.saveOnFailure(t)
	t.Cleanup(func() { c.rebalance(t) })
	_, zone, _ := c.podsByZone(t, serviceB)
	node := c.zones(t)[zone][0] // has most pods of service-b
	lost := map[string]int{}
	nodeOf := map[string]string{} // by pod
	var remaining []string
	for _, service := range services {
		for name, p := range c.readyPods(t, service) {
			nodeOf[name] = p.Spec.NodeName
			if p.Spec.NodeName == node {
				lost[service]++
			} else if service == serviceA {
				remaining = append(remaining, name)
			}
		}
	}
	require.NotEmpty(t, remaining, "all pods of service-a are on %s", node)
	require.Positive(t, lost[serviceB])
	var admins []string
	for _, pod := range remaining {
		admins = append(admins, c.forward(t, namespace, pod, adminPort))
	}
	deadline := c.callTimeout(t)
	g := c.startBusyLoad(t)

	restore(t, "the network of "+node, func(ctx context.Context) error { return c.reconnect(ctx, node) })
	before := callsByOutcome(t, admins)
	cut := g.Elapsed()
	require.NoError(t, c.cutOff(t.Context(), node))
	for _, service := range []string{serviceB, headless, serviceA} {
		eventually(t, 3*time.Minute, "pods of the node remain endpoints of "+service, func(is *assert.CollectT) {
			for _, pod := range c.endpoints(is, service) {
				assert.NotEqual(is, node, nodeOf[pod])
			}
		})
	}
	noticed := g.Elapsed()
	r.addFact("one worker of two was cut off, with %d pods of service-a and %d of service-b; Kubernetes removed them from the endpoints after %s",
		lost[serviceA], lost[serviceB], (noticed - cut).Round(time.Second))
	time.Sleep(15 * time.Second)
	after := callsByOutcome(t, admins)
	end := g.Elapsed()

	for _, via := range transports {
		all, failed := 0.0, 0.0
		for outcome, n := range after[via] {
			n -= before[via][outcome]
			all += n
			if outcome != "ok" {
				failed += n
			}
		}
		r.addFact("%s, counted by the remaining pods of service-a: %.0f calls of service-b, %.0f failed", via, all, failed)
		require.Positive(t, all, via)
		assert.LessOrEqual(t, failed/all, 0.01, "%s: calls by the remaining pods of service-a", via)
		r.addFigures(g.Figures(via, "until the endpoints change", cut, noticed))
		r.addFigures(g.Figures(via, "after that", noticed+5*time.Second, end))
		last := g.LastFailure(via, cut, end)
		longest := time.Duration(0)
		for _, request := range g.Requests(via, cut, end) {
			if request.Class != load.NoResponse {
				longest = max(longest, request.Took)
			}
		}
		r.addFact("%s: the last failure came %s after the cut; the longest call with a response from service-a took %s",
			via, (last - cut).Round(time.Second), longest.Round(10*time.Millisecond))
		assert.LessOrEqual(t, longest, withSlack(g, deadline), via)
		assert.LessOrEqual(t, last-cut, detection+g.Spec().Timeout, via)
	}

	require.NoError(t, c.reconnect(t.Context(), node))
	back := g.Elapsed()
	_, _, err := c.kubectl(t.Context(), "", "wait", "--for=condition=Ready", "node/"+node, "--timeout=180s")
	require.NoError(t, err)
	c.settle(t)
	r.addFact("all pods ready %s after the network was back", (g.Elapsed() - back).Round(time.Second))
	// Pods of service-a on that node connect to service-b again within 2 s, the longest
	// time that package grpcclient waits between dials. Until then their calls fail.
	time.Sleep(2 * time.Second)
	back = g.Elapsed()
	time.Sleep(10 * time.Second)
	end = g.Elapsed()
	g.Stop()
	for _, via := range transports {
		f := r.addFigures(g.Figures(via, "after the reconnection", back, end))
		assert.Empty(t, f.Failed, "%s: %v", via, g.Examples())
	}
	r.Limits = "A call fails if all its attempts reach lost pods, and two thirds of the pods are lost. The other failures are requests without a response from service-a: its virtual IP sends new connections to lost pods until Kubernetes marks the node as not ready. A gateway or mesh that ejects outliers and retries, as service-a does towards service-b, shortens that to about a second. More replicas lower the share. On AKS, --node-monitor-grace-period cannot be shortened."
}

// callsByOutcome counts the calls that pods of service-a have made, by transport and
// outcome. admins are the URLs of their admin ports.
func callsByOutcome(t *testing.T, admins []string) map[string]map[string]float64 {
	t.Helper()
	out := map[string]map[string]float64{"http": {}, "grpc": {}}
	for _, admin := range admins {
		for _, m := range scrape(t, admin) {
			if m.name == "client_calls_total" {
				out[m.labels["transport"]][m.labels["outcome"]] += m.value
			}
		}
	}
	return out
}

// When one pod is slow, at most its share of the calls is slow, and fewer once it is
// ejected.
func TestReliability_PodSlow(t *testing.T) {
	r := newRow(t, 9, "one of three service-b pods takes 5 s for each call",
		"no call takes longer than its deadline, and "+fewFail+"; at most the pod's share of the calls is slow, and fewer after 5 s")
	c := connectBusy(t)
	defer c.saveOnFailure(t)
	deadline := c.callTimeout(t)
	g := c.startBusyLoad(t)
	pods := sortedKeys(c.readyPods(t, serviceB))
	injectFault(t, c.forwardFaultSwitch(t, pods[0]), `{"latency":"5s"}`)
	start := g.Elapsed()
	const soon = 5 * time.Second
	time.Sleep(soon + byForm(r, 25*time.Second, 115*time.Second))
	end := g.Elapsed()
	g.Stop()
	slow := deadline / 4 // far above a normal call, far below the timeout of an attempt
	share := 1 / float64(len(pods))
	for _, via := range transports {
		failed := 0
		for _, period := range []struct {
			name     string
			from, to time.Duration
			share    float64
		}{
			{"the first 5 s", start, start + soon, share},
			{"after that", start + soon, end, share / 4},
		} {
			f := r.addFigures(g.Figures(via, period.name, period.from, period.to))
			got := shareSlowerThan(slow, g.Requests(via, period.from, period.to))
			r.addFact("%s, %s: %.1f %% of the calls took more than %s", via, period.name, 100*got, slow)
			assert.LessOrEqual(t, got, period.share, "%s, %s", via, period.name)
			failed += f.TotalFailed()
		}
		assert.LessOrEqual(t, failed, failedPerHang[via], "%s: slow attempts should be retried at another pod: %v", via, g.Examples())
	}
	r.requireWithinDeadline(g, deadline)
	r.Limits = hangLimits
}

func shareSlowerThan(limit time.Duration, requests []load.Request) float64 {
	n := 0
	for _, r := range requests {
		if r.Took > limit {
			n++
		}
	}
	return float64(n) / float64(max(len(requests), 1))
}

// Errors of one pod are retried at others.
func TestReliability_PodReturnsErrors(t *testing.T) {
	r := newRow(t, 10, "one of three service-b pods returns errors for 30 % of its calls", "retries within the budget leave at most 3 failed calls of 1,000")
	c := connectBusy(t)
	defer c.saveOnFailure(t)
	g := c.startBusyLoad(t)
	injectFault(t, c.forwardFaultSwitch(t, firstOf(c.readyPods(t, serviceB)).Name), latencyFault(`,"errorRate":0.3`))
	time.Sleep(byForm(r, 30*time.Second, 120*time.Second))
	end := g.Elapsed()
	g.Stop()
	for _, via := range transports {
		f := r.addFigures(g.Figures(via, "", 0, end))
		assert.LessOrEqual(t, float64(f.TotalFailed())/float64(f.Calls), 0.003, "%s: %v", via, g.Examples())
	}
	r.Limits = "Behind a virtual IP, the pod of a new connection is random: if all three attempts were made on new connections, one call of 1,000 would get three errors from the faulty pod (a third of 30 %, to the third power). gRPC knows the pods and ejects the faulty one. Over HTTP, a mesh or more replicas lower the share."
}

// Without DNS, calls to names that were resolved before succeed.
func TestReliability_DNSDown(t *testing.T) {
	r := newRow(t, 11, "CoreDNS deleted and created again",
		"no failed call to a name that was resolved before; the first lookup of a process gets a response within the deadline or the class dns")
	c := connectBusy(t)
	defer c.saveOnFailure(t)
	d, err := c.AppsV1().Deployments(systemNamespace).Get(t.Context(), coreDNS, metav1.GetOptions{})
	require.NoError(t, err)
	scale := func(ctx context.Context, n int32) error { return c.scaleDeployment(ctx, systemNamespace, coreDNS, n) }
	restore(t, "CoreDNS", func(ctx context.Context) error { return scale(ctx, *d.Spec.Replicas) })
	age := c.maxConnectionAge(t)
	g := c.startBusyLoad(t)

	require.NoError(t, scale(t.Context(), 0))
	eventually(t, time.Minute, "CoreDNS still has pods", func(is *assert.CollectT) {
		pods, err := c.CoreV1().Pods(systemNamespace).List(context.Background(), metav1.ListOptions{LabelSelector: coreDNSSelector})
		require.NoError(is, err)
		assert.Empty(is, pods.Items)
	})
	gone := g.Elapsed()
	// The probe is a process of its own, which has resolved no name before.
	first := c.probe(namespace, fromServiceA, serviceURLs(short)["http"], blockTimeout)
	assert.Equal(t, "dns", first.class, first.output)
	r.addFact("the first lookup of a process gets the class %s", first.class)
	time.Sleep(age*11/10 + 5*time.Second - (g.Elapsed() - gone)) // all connections are replaced in this time
	require.NoError(t, scale(t.Context(), *d.Spec.Replicas))
	back := g.Elapsed()
	_, _, err = c.kubectl(t.Context(), "", "--namespace", systemNamespace, "rollout", "status", "deployment/"+coreDNS, "--timeout=120s")
	require.NoError(t, err)
	r.addFact("DNS was down for %s, longer than the maximum age of a connection (%s)", (g.Elapsed() - gone).Round(time.Second), age)
	time.Sleep(10 * time.Second)
	end := g.Elapsed()
	g.Stop()
	for _, via := range transports {
		f := r.addFigures(g.Figures(via, "without DNS", gone, back))
		assert.Empty(t, f.Failed, "%s: %v", via, g.Examples())
		assert.Empty(t, g.Figures(via, "", back, end).Failed, "%s, with DNS again: %v", via, g.Examples())
	}
	c.requireReachable(t, namespace, fromServiceA, serviceURLs(short)["http"])
}
