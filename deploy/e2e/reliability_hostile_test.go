package e2e

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"example.com/tandem/deploy/e2e/load"
)

// Hostile clients do not make other calls fail or much slower, and the server closes
// their connections.
func TestReliability_HostileClients(t *testing.T) {
	r := newRow(t, 14, "hostile input: slow headers, 1,000 half-open and 6,000 idle connections, half-sent gRPC messages, headers of 1 MB, garbage on both ports, rapid resets",
		"the p99 of other calls at most doubles; no container restarts; connections that no honest caller would keep open are closed")
	r.ShortAsserts = "the p99 of other calls is at most 20 times that before, because one stall of the machine decides it"
	c := connect(t)
	c.requireKind(t)
	defer c.saveOnFailure(t)
	restarts := c.restarts(t)
	published, err := url.Parse(c.url)
	require.NoError(t, err)
	exposed, exposedAddr := c.exposeGRPC(t)
	admins := map[string]string{}
	for pod := range c.readyPods(t, serviceA) {
		admins[pod] = c.forward(t, namespace, pod, adminPort)
	}
	admins[exposed.Name] = c.forward(t, namespace, exposed.Name, adminPort)
	quietGoroutines, quietMemory, maxMemory := map[string]float64{}, map[string]float64{}, map[string]float64{}

	g := c.startLoad(t, load.Spec{Rate: 100, Callers: 400})
	awaitSuccess(t, g)
	period := byForm(r, 20*time.Second, 60*time.Second)
	from := g.Elapsed()
	time.Sleep(period)
	quiet := g.Elapsed()
	for pod, admin := range admins {
		quietGoroutines[pod] = gauge(t, admin, goroutines)
		quietMemory[pod] = gauge(t, admin, residentMemory) / (1 << 20)
	}

	const ramp = 6 * time.Second // until all clients of an attack have begun
	ctx, stop := context.WithCancel(t.Context())
	var attackers sync.WaitGroup
	var attacks []*attack
	// launch repeats an attack from many clients until stop is called.
	launch := func(name string, clients int, addr string, pause time.Duration, do func(*attack, context.Context, string)) *attack {
		a := &attack{name: name}
		attacks = append(attacks, a)
		for i := range clients {
			attackers.Go(func() {
				time.Sleep(time.Duration(i) * ramp / time.Duration(clients))
				for ctx.Err() == nil {
					do(a, ctx, addr)
					select {
					case <-time.After(pause):
					case <-ctx.Done():
					}
				}
			})
		}
		return a
	}
	// watch measures the maximum memory of each pod.
	watch := func(period time.Duration) {
		for end := time.Now().Add(period); time.Now().Before(end); time.Sleep(time.Second) {
			for pod, admin := range admins {
				maxMemory[pod] = max(maxMemory[pod], gauge(t, admin, residentMemory)/(1<<20))
			}
		}
	}
	start := g.Elapsed()
	launch("half-open connections to service-a", 1000, published.Host, time.Second, (*attack).halfOpen)
	launch("slow headers to service-a", 100, published.Host, time.Second, (*attack).slowHeaders)
	launch("headers of 1 MB to service-a", 2, published.Host, time.Second, (*attack).bigHeaders)
	launch("garbage to service-a", 5, published.Host, time.Second, (*attack).garbage)
	launch("half-open connections to service-b's gRPC", 200, exposedAddr, time.Second, (*attack).halfOpen)
	launch("garbage to service-b's gRPC", 5, exposedAddr, time.Second, (*attack).garbage)
	launch("rapid resets to service-b's gRPC, connections of 10,000 each", 1, exposedAddr, time.Second, (*attack).rapidResets)
	launch("200 half-sent messages of 1 MiB to service-b's gRPC", 4, exposedAddr, time.Second, (*attack).bigHalves).mayKeep = true
	launch("200 half-sent messages of 60 KiB to service-b's gRPC", 4, exposedAddr, time.Second, (*attack).smallHalves).mayKeep = true
	// Without this pause, the test would measure how fast the machine connects.
	launch("idle connections to service-b's gRPC", 6000, exposedAddr, 30*time.Second, (*attack).idle).mayKeep = true
	watch(ramp)
	middle := g.Elapsed()
	watch(period)
	end := g.Elapsed()
	stop()
	attackers.Wait()
	g.Stop()
	r.addFact("the attacks lasted %s", (end - start).Round(time.Second))
	for _, a := range attacks {
		opened, closed := a.opened.Load(), a.closed.Load()
		r.addFact("%s: %d, of which the server closed %d", a.name, opened, closed)
		assert.Positive(t, opened, a.name)
		if !a.mayKeep {
			assert.Equal(t, opened, closed, a.name)
		}
	}
	for _, pod := range sortedKeys(admins) {
		r.addFact("%s: %.0f MiB resident before, at most %.0f under attack (limit 128)", pod, quietMemory[pod], maxMemory[pod])
	}
	for _, via := range transports {
		before := r.addFigures(g.Figures(via, "before", from, quiet))
		during := r.addFigures(g.Figures(via, "under attack", middle, end))
		r.addFact("%s: p99 under attack is %.1f times the p99 before", via, during.P99/before.P99)
		// In the short form, a single stall of the machine decides the p99: check only that
		// others are served at all.
		assert.LessOrEqual(t, during.P99/before.P99, byForm(r, 20.0, 2.0), via)
		assert.Empty(t, during.Failed, "%s: %v", via, g.Examples())
	}
	assert.Equal(t, restarts, c.restarts(t), "restarts")
	eventually(t, time.Minute, "goroutines remain after the attacks", func(is *assert.CollectT) {
		for pod, admin := range admins {
			assert.LessOrEqual(is, gauge(t, admin, goroutines), quietGoroutines[pod]*1.5+20, pod)
		}
	})
}

// exposeGRPC lets this machine reach the gRPC port of one service-b pod, and returns the
// address. Never expose a service so: the test is of the port without its policy.
func (c *cluster) exposeGRPC(t *testing.T) (corev1.Pod, string) {
	t.Helper()
	pod := firstOf(c.readyPods(t, serviceB))
	port := intstr.FromInt32(grpcPort)
	meta := metav1.ObjectMeta{Name: "e2e-exposed", Labels: map[string]string{testLabel: "exposed"}}
	core, policies := c.CoreV1(), c.NetworkingV1().NetworkPolicies(namespace)
	const exposedLabel = "tandem.example.com/exposed"
	exposed := map[string]string{exposedLabel: "true"}
	setLabel := func(ctx context.Context, value string) error {
		patch := fmt.Sprintf(`{"metadata":{"labels":{%q:%s}}}`, exposedLabel, value)
		_, err := core.Pods(namespace).Patch(ctx, pod.Name, types.MergePatchType, []byte(patch), metav1.PatchOptions{})
		return err
	}
	require.NoError(t, setLabel(t.Context(), `"true"`))
	restore(t, "label of "+pod.Name, func(ctx context.Context) error { return setLabel(ctx, "null") })
	_, err := policies.Create(t.Context(), &networkingv1.NetworkPolicy{ObjectMeta: meta, Spec: networkingv1.NetworkPolicySpec{
		PodSelector: metav1.LabelSelector{MatchLabels: exposed},
		PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress},
		Ingress:     []networkingv1.NetworkPolicyIngressRule{{Ports: []networkingv1.NetworkPolicyPort{{Port: &port}}}},
	}}, metav1.CreateOptions{})
	require.NoError(t, err)
	restore(t, "policy", func(ctx context.Context) error { return policies.Delete(ctx, meta.Name, metav1.DeleteOptions{}) })
	service, err := core.Services(namespace).Create(t.Context(), &corev1.Service{ObjectMeta: meta, Spec: corev1.ServiceSpec{
		Type: corev1.ServiceTypeNodePort, Selector: exposed, Ports: []corev1.ServicePort{{Port: grpcPort, TargetPort: port}},
	}}, metav1.CreateOptions{})
	require.NoError(t, err)
	restore(t, "Service", func(ctx context.Context) error {
		return core.Services(namespace).Delete(ctx, meta.Name, metav1.DeleteOptions{})
	})
	addr := net.JoinHostPort(pod.Status.HostIP, strconv.Itoa(int(service.Spec.Ports[0].NodePort)))
	eventually(t, time.Minute, "the node's port does not open: does this machine reach the addresses of the nodes, as Linux does?", func(is *assert.CollectT) {
		conn, err := net.DialTimeout("tcp", addr, time.Second)
		require.NoError(is, err)
		assert.NoError(is, conn.Close())
	})
	return pod, addr
}
