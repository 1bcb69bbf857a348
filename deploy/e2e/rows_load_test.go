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
)

// The rows of docs/reliability.md in which there is much load, or ill-meant.

// Overload is tried on a pair that can serve little, so that it is service-b
// that is short of CPU, and neither the machine nor what makes the load. A call
// costs service-b far more than it costs anybody to refuse it, as where there is
// real work to do: some 40 calls a second are what such a pod answers.
const (
	costlyCall = `{"cpu":"3ms"}`
	smallCPU   = "125m"
	// smallPlaces is the MAX_IN_FLIGHT that goes with it, by the rule in
	// service-b.env: what a pod answers in about a fifth of a second.
	smallPlaces = 8
)

func TestWhenThereIsTooMuchLoadTheRestIsRefusedQuickly(t *testing.T) {
	r := newRow(t, 12, "load of 1, 2 and 4 times what the pair can serve",
		"answers a second at 4 times are at least 0.9 of the peak; the rest is refused quickly with 503; no pod is killed or restarted; all is well again within 5 s")
	c := connect(t)
	defer c.keep(t)
	deadline := c.callTimeout(t)
	span := either(r, 8*time.Second, 20*time.Second)
	c.makeSmall(t)
	for pod := range c.serving(t, serviceB) {
		sicken(t, c.debug(t, pod), costlyCall)
	}
	places := smallPlaces * len(c.serving(t, serviceA))
	before := c.restarts(t)
	for _, via := range transports {
		peak, best := 0.0, 0.0
		for _, callers := range []int{places / 2, places} {
			f, from, to := c.trafficFor(t, span, offer{callers: callers, transports: []string{via}})
			g := r.measured(f.figures(via, fmt.Sprintf("closed loop of %d callers", callers), from, to))
			peak = max(peak, g.PerSecond)
		}
		for _, times := range []float64{1, 2, 4} {
			f, from, to := c.trafficFor(t, span, offer{rate: times * peak, callers: 1500, transports: []string{via}})
			g := r.measured(f.figures(via, fmt.Sprintf("%.0f times: %.0f calls a second", times, times*peak), from, to))
			var refusals []time.Duration
			for _, call := range f.between(via, from, to) {
				if call.class != "" {
					refusals = append(refusals, call.took)
				}
			}
			for class := range g.Failed {
				assert.Equal(t, "unavailable (503)", class, "%s: %v", via, f.why())
			}
			if len(refusals) > 0 {
				slices.Sort(refusals)
				r.fact("%s at %.0f times: half of the refusals came within %s, 99 %% within %s; calls that were not made: %d", via, times,
					rank(refusals, 0.5).Round(100*time.Microsecond), rank(refusals, 0.99).Round(100*time.Microsecond), f.withheld.Load())
				assert.Less(t, rank(refusals, 0.99), deadline/2+f.stalled(), "%s: quickly", via)
			}
			best = max(best, peak, g.PerSecond)
			if times == 4 {
				r.fact("%s: at 4 times the load %.0f answers a second, which is %.2f of the most at any load", via, g.PerSecond, g.PerSecond/best)
				// Of some seconds, in which a peak is easily too high, that it does not collapse.
				assert.GreaterOrEqual(t, g.PerSecond/best, either(r, 0.7, 0.9), via)
			}
		}
		// Well below the peak again: nothing of the overload may be left.
		f := c.traffic(t, offer{rate: peak / 2, callers: 1500, transports: []string{via}})
		time.Sleep(15 * time.Second)
		end := f.now()
		f.stop()
		last := f.lastFailure(via, 0, end)
		r.fact("%s at half of the peak after it: the last failure came after %s", via, last.Round(100*time.Millisecond))
		assert.LessOrEqual(t, last, 5*time.Second, "%s: %v", via, f.why())
		assert.Equal(t, before, c.restarts(t), "restarts")
	}
	r.Bound = fmt.Sprintf("The pair is made small here: a call costs service-b 3 ms of CPU, of which a pod may use %s, and MAX_IN_FLIGHT is %d, what such a pod answers in a fifth of a second. No refusal is free: where service-a itself is what is short, refusing costs it a good part of what answering does. More replicas (the autoscaler) or a limit at the gateway lower it.", smallCPU, smallPlaces)
}

// makeSmall leaves service-b little CPU, and both services the few places that
// go with it, until the test ends.
func (c *cluster) makeSmall(t *testing.T) {
	t.Helper()
	for _, service := range []string{serviceA, serviceB} {
		d := c.deployment(t, service)
		container := d.Spec.Template.Spec.Containers[0]
		require.Zero(t, container.Resources.Limits.Cpu().Value(), "the base sets no CPU limit")
		normal, small := "{}", "{}"
		if service == serviceB {
			normal = fmt.Sprintf(`{"limits":{"cpu":null},"requests":{"cpu":%q}}`, container.Resources.Requests.Cpu())
			small = fmt.Sprintf(`{"limits":{"cpu":%q},"requests":{"cpu":%[1]q}}`, smallCPU)
		}
		patch := func(ctx context.Context, minReady int32, places, resources string) error {
			text := fmt.Sprintf(`{"spec":{"minReadySeconds":%d,"template":{"spec":{"containers":[
				{"name":%q,"env":[{"name":"MAX_IN_FLIGHT",%s}],"resources":%s}]}}}}`, minReady, service, places, resources)
			_, err := c.AppsV1().Deployments(namespace).Patch(ctx, service, types.StrategicMergePatchType, []byte(text), metav1.PatchOptions{})
			return err
		}
		restore(t, "CPU and MAX_IN_FLIGHT of "+service, func(ctx context.Context) error {
			return patch(ctx, d.Spec.MinReadySeconds, `"$patch":"delete"`, normal)
		})
		require.NoError(t, patch(t.Context(), 0, fmt.Sprintf(`"value":"%d"`, smallPlaces), small))
	}
	c.settle(t)
}

func TestWhenThereIsLoadForLongMemoryStaysFlat(t *testing.T) {
	r := newRow(t, 13, "load at 0.7 of the peak, for long", "resident memory flat, no restart, no more goroutines")
	minutes := either(r, 2.0, 30.0)
	r.What = fmt.Sprintf("%.0f minutes of load at 0.7 of the peak", minutes)
	c := connect(t)
	defer c.keep(t)
	before := c.restarts(t)
	admins := map[string]map[string]string{serviceA: {}, serviceB: {}}
	for service := range admins {
		for pod := range c.serving(t, service) {
			admins[service][pod] = c.forward(t, namespace, pod, 8081)
		}
	}
	peak := map[string]float64{}
	f, from, to := c.trafficFor(t, 10*time.Second, offer{callers: 16})
	for _, via := range transports {
		peak[via] = f.figures(via, "", from, to).PerSecond
	}
	rate := 0.7 * min(peak["http"], peak["grpc"])
	r.fact("the peak is %.0f answers a second over HTTP beside %.0f over gRPC; so %.0f are asked for over each", peak["http"], peak["grpc"], rate)

	f = c.traffic(t, offer{rate: rate, callers: 400})
	// What a process needs for so much load it takes in the first moments.
	time.Sleep(20 * time.Second)
	memory, goroutines := map[string][]float64{}, map[string][]float64{}
	span := time.Duration(minutes * float64(time.Minute))
	start := f.now()
	for f.now()-start < span {
		for service, pods := range admins {
			resident, running := 0.0, 0.0
			for _, admin := range pods {
				resident = max(resident, gauge(t, admin, residentMemory))
				running = max(running, gauge(t, admin, "go_goroutines"))
			}
			memory[service] = append(memory[service], resident/(1<<20))
			goroutines[service] = append(goroutines[service], running)
		}
		time.Sleep(min(5*time.Second, span/60))
	}
	end := f.now()
	f.stop()
	for _, via := range transports {
		g := r.measured(f.figures(via, "", start, end))
		seconds := map[int]bool{}
		for _, call := range f.between(via, start, end) {
			if call.class != "" {
				seconds[int(call.at.Seconds())] = true
			}
		}
		if g.failed() > 0 {
			r.fact("%s: all calls that failed did so in %d of the %.0f seconds", via, len(seconds), span.Seconds())
		}
	}
	r.fact("the machine, which is all nodes and makes the load too, kept the callers themselves waiting for up to %s", f.stalled().Round(time.Millisecond))
	for _, service := range []string{serviceA, serviceB} {
		middle, last := thirds(memory[service], mean)
		r.fact("%s: the largest pod had %.1f MiB resident in the middle third, %.1f in the last (limit 128), at most %.1f", service, middle, last, slices.Max(memory[service]))
		// What Go took for a burst of calls, it gives back in minutes: of two minutes' thirds, one burst can make a tenth.
		assert.LessOrEqual(t, last/middle, either(r, 1.25, 1.10), "resident memory of %s; less is no leak, but what Go has given back", service)
		// Each call and connection has some, and so they come and go; the fewest of
		// a third are those that stay.
		middle, last = thirds(goroutines[service], slices.Min[[]float64])
		r.fact("%s: never fewer than %.0f goroutines in the middle third, and %.0f in the last; at most %.0f", service, middle, last, slices.Max(goroutines[service]))
		assert.LessOrEqual(t, last, 1.10*middle+10, "goroutines of %s", service)
	}
	assert.Equal(t, before, c.restarts(t), "restarts")
}

// thirds are the middle third and the last, each as one figure.
func thirds(figures []float64, of func([]float64) float64) (middle, last float64) {
	n := len(figures) / 3
	return of(figures[n : 2*n]), of(figures[2*n:])
}

func mean(figures []float64) float64 {
	sum := 0.0
	for _, v := range figures {
		sum += v
	}
	return sum / float64(len(figures))
}
