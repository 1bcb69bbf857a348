package e2e

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"example.com/tandem/deploy/e2e/load"
)

// The rows of docs/reliability.md about much load.

// The overload test makes service-b small and its calls expensive. Then service-b lacks
// CPU, not the machine or the load generator, and rejecting a call costs far less than
// serving it, as with real work. Such a pod serves about 40 calls a second.
const (
	expensiveCall = `{"cpu":"3ms"}`
	smallCPU      = "125m"
	// smallMaxInFlight is the MAX_IN_FLIGHT for smallCPU, by the rule in
	// deploy/base/service-b/settings.env: what a pod serves in about a fifth of a second.
	smallMaxInFlight = 8
)

// Under overload, throughput remains near its peak and the other calls are rejected
// quickly.
func TestReliability_Overload(t *testing.T) {
	r := newRow(t, 12, "load of 1, 2 and 4 times the capacity",
		"at 4 times, throughput is at least 0.9 of the peak; other calls are rejected quickly with 503; no container restarts; no call fails from 5 s after the overload")
	r.ShortAsserts = "at 4 times, throughput is at least 0.7 of the peak"
	c := connect(t)
	defer c.saveOnFailure(t)
	deadline := c.callTimeout(t)
	period := byForm(r, 8*time.Second, 20*time.Second)
	c.makeSmall(t)
	for pod := range c.readyPods(t, serviceB) {
		injectFault(t, c.forwardFaultSwitch(t, pod), expensiveCall)
	}
	capacity := smallMaxInFlight * len(c.readyPods(t, serviceA))
	before := c.restarts(t)
	for _, via := range transports {
		peak, best := 0.0, 0.0
		for _, callers := range []int{capacity / 2, capacity} {
			g, from, to := c.measureLoad(t, period, load.Spec{Callers: callers, Transports: []string{via}})
			f := r.addFigures(g.Figures(via, fmt.Sprintf("closed loop of %d callers", callers), from, to))
			peak = max(peak, f.SucceededPerSecond)
		}
		for _, times := range []float64{1, 2, 4} {
			g, from, to := c.measureLoad(t, period, load.Spec{Rate: times * peak, Callers: 1500, Transports: []string{via}})
			f := r.addFigures(g.Figures(via, fmt.Sprintf("%.0f times: %.0f calls a second", times, times*peak), from, to))
			var rejections []time.Duration
			for _, request := range g.Requests(via, from, to) {
				if request.Class != "" {
					rejections = append(rejections, request.Took)
				}
			}
			for class := range f.Failed {
				assert.Equal(t, "unavailable (503)", class, "%s: %v", via, g.Examples())
			}
			if len(rejections) > 0 {
				slices.Sort(rejections)
				r.addFact("%s at %.0f times: half of the rejections took up to %s, 99 %% up to %s; calls not made: %d", via, times,
					load.Percentile(rejections, 0.5).Round(100*time.Microsecond), load.Percentile(rejections, 0.99).Round(100*time.Microsecond), g.Skipped())
				assert.Less(t, load.Percentile(rejections, 0.99), deadline/2+g.Stalled(), "%s: rejections are slow", via)
			}
			best = max(best, peak, f.SucceededPerSecond)
			if times == 4 {
				r.addFact("%s: at 4 times, %.0f successful calls a second, which is %.2f of the peak", via, f.SucceededPerSecond, f.SucceededPerSecond/best)
				// In the short form the peak is imprecise: check only that throughput does not collapse.
				assert.GreaterOrEqual(t, f.SucceededPerSecond/best, byForm(r, 0.7, 0.9), via)
			}
		}
		// Well below the peak, the overload must have no effect any more.
		g := c.startLoad(t, load.Spec{Rate: peak / 2, Callers: 1500, Transports: []string{via}})
		time.Sleep(15 * time.Second)
		end := g.Elapsed()
		g.Stop()
		last := g.LastFailure(via, 0, end)
		r.addFact("%s at half of the peak, after the overload: the last failure came after %s", via, last.Round(100*time.Millisecond))
		assert.LessOrEqual(t, last, 5*time.Second, "%s: %v", via, g.Examples())
		assert.Equal(t, before, c.restarts(t), "restarts")
	}
	r.Limits = fmt.Sprintf("The services are small here: a call costs service-b 3 ms of CPU, of which a pod may use %s, and MAX_IN_FLIGHT is %d, what such a pod serves in a fifth of a second. Rejections are not free: where service-a itself lacks CPU, a rejection costs a good part of a successful call. More replicas (the autoscaler) or a limit at the gateway help.", smallCPU, smallMaxInFlight)
}

// makeSmall limits service-b to smallCPU and both services to smallMaxInFlight, until
// the end of the test.
func (c *cluster) makeSmall(t *testing.T) {
	t.Helper()
	for _, service := range services {
		d := c.deployment(t, service)
		container := d.Spec.Template.Spec.Containers[0]
		require.Zero(t, container.Resources.Limits.Cpu().Value(), "the base sets no CPU limit")
		normal, small := "{}", "{}"
		if service == serviceB {
			normal = fmt.Sprintf(`{"limits":{"cpu":null},"requests":{"cpu":%q}}`, container.Resources.Requests.Cpu())
			small = fmt.Sprintf(`{"limits":{"cpu":%q},"requests":{"cpu":%[1]q}}`, smallCPU)
		}
		patch := func(ctx context.Context, minReady int32, maxInFlight, resources string) error {
			text := fmt.Sprintf(`{"spec":{"minReadySeconds":%d,"template":{"spec":{"containers":[
				{"name":%q,"env":[{"name":"MAX_IN_FLIGHT",%s}],"resources":%s}]}}}}`, minReady, service, maxInFlight, resources)
			_, err := c.AppsV1().Deployments(namespace).Patch(ctx, service, types.StrategicMergePatchType, []byte(text), metav1.PatchOptions{})
			return err
		}
		restore(t, "CPU and MAX_IN_FLIGHT of "+service, func(ctx context.Context) error {
			return patch(ctx, d.Spec.MinReadySeconds, `"$patch":"delete"`, normal)
		})
		require.NoError(t, patch(t.Context(), 0, fmt.Sprintf(`"value":"%d"`, smallMaxInFlight), small))
	}
	c.settle(t)
}

// Under steady load, memory and goroutines do not grow.
func TestReliability_MemoryStaysFlat(t *testing.T) {
	r := newRow(t, 13, "long load at 0.7 of the peak", "resident memory and goroutines do not grow; no container restarts")
	r.ShortAsserts = "resident memory grows by a quarter at most from the middle third to the last (in the full form by a tenth)"
	r.Limits = "The row asserts nothing about failed calls: one machine runs all nodes and the load generator, at 0.7 of its peak. The rows with 50 callers assert that no call is lost."
	minutes := byForm(r, 2.0, 30.0)
	r.Event = fmt.Sprintf("%.0f minutes of load at 0.7 of the peak", minutes)
	c := connect(t)
	defer c.saveOnFailure(t)
	before := c.restarts(t)
	admins := map[string]map[string]string{serviceA: {}, serviceB: {}}
	for service := range admins {
		for pod := range c.readyPods(t, service) {
			admins[service][pod] = c.forward(t, namespace, pod, adminPort)
		}
	}
	peak := map[string]float64{}
	g, from, to := c.measureLoad(t, 10*time.Second, load.Spec{Callers: 16})
	for _, via := range transports {
		peak[via] = g.Figures(via, "", from, to).SucceededPerSecond
	}
	rate := 0.7 * min(peak["http"], peak["grpc"])
	r.addFact("the peak is %.0f calls a second over HTTP and, at the same time, %.0f over gRPC; the load is %.0f over each", peak["http"], peak["grpc"], rate)

	g = c.startLoad(t, load.Spec{Rate: rate, Callers: 400})
	// In the first moments, processes allocate what they need for this load.
	time.Sleep(20 * time.Second)
	memory, running := map[string][]float64{}, map[string][]float64{}
	period := time.Duration(minutes * float64(time.Minute))
	start := g.Elapsed()
	for g.Elapsed()-start < period {
		for service, pods := range admins {
			maxMemory, maxRunning := 0.0, 0.0
			for _, admin := range pods {
				maxMemory = max(maxMemory, gauge(t, admin, residentMemory))
				maxRunning = max(maxRunning, gauge(t, admin, goroutines))
			}
			memory[service] = append(memory[service], maxMemory/(1<<20))
			running[service] = append(running[service], maxRunning)
		}
		time.Sleep(min(5*time.Second, period/60))
	}
	end := g.Elapsed()
	g.Stop()
	for _, via := range transports {
		f := r.addFigures(g.Figures(via, "", start, end))
		seconds := map[int]bool{}
		for _, request := range g.Requests(via, start, end) {
			if request.Class != "" {
				seconds[int(request.End.Seconds())] = true
			}
		}
		if f.TotalFailed() > 0 {
			r.addFact("%s: calls failed in %d of the %.0f seconds", via, len(seconds), period.Seconds())
		}
	}
	r.addFact("the machine, which runs all nodes and the load generator, kept the generator waiting for up to %s", g.Stalled().Round(time.Millisecond))
	for _, service := range services {
		middle, last := thirds(memory[service], mean)
		r.addFact("%s: the largest pod had %.1f MiB resident in the middle third, %.1f in the last (limit 128), at most %.1f", service, middle, last, slices.Max(memory[service]))
		// Go returns the memory of a burst of calls within minutes. In the short form, one burst can be a tenth.
		assert.LessOrEqual(t, last/middle, byForm(r, 1.25, 1.10), "resident memory of %s", service)
		// Calls and connections have goroutines that come and go; the minimum of a third
		// counts those that remain.
		middle, last = thirds(running[service], slices.Min[[]float64])
		r.addFact("%s: never fewer than %.0f goroutines in the middle third, and %.0f in the last; at most %.0f", service, middle, last, slices.Max(running[service]))
		assert.LessOrEqual(t, last, 1.10*middle+10, "goroutines of %s", service)
	}
	assert.Equal(t, before, c.restarts(t), "restarts")
}

// thirds applies reduce to the middle and to the last third of values.
func thirds(values []float64, reduce func([]float64) float64) (middle, last float64) {
	n := len(values) / 3
	return reduce(values[n : 2*n]), reduce(values[2*n:])
}

func mean(values []float64) float64 {
	sum := 0.0
	for _, v := range values {
		sum += v
	}
	return sum / float64(len(values))
}
