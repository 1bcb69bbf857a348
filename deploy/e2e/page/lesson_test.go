package page

import (
	"encoding/json"
	"fmt"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// figures are the calls of a pod over one way.
func figures(count int, p50 float64, errors object) object {
	return object{"count": count, "rate": float64(count) / 30, "p50": p50, "p99": 2 * p50, "errors": errors}
}

func pod(i int, state string, fault, via object) object {
	return object{"pod": fmt.Sprintf("b-%d", i), "ip": fmt.Sprintf("10.0.0.%d", i), "state": state, "fault": fault, "via": via}
}

// way has the addresses of the first pods, or that of a ClusterIP.
func way(via, balancedBy string, pods int) object {
	all := []string{}
	for i := range pods {
		all = append(all, fmt.Sprintf("10.0.0.%d:9090", i+1))
	}
	if balancedBy == "network" {
		all = []string{"10.96.0.9:9090"}
	}
	return object{"via": via, "target": "service-b", "balancedBy": balancedBy, "addresses": all}
}

// The sentences beside the picture follow from its figures.
func TestLesson_FollowsFromFigures(t *testing.T) {
	fake := serveSnapshots(t, busy(3)) // before the tab: the tab must close first
	tab := newTab(t)
	open(t, tab, fake.url)
	http, grpc, service := way("http", "network", 0), way("grpc", "client", 3), way("grpc-service", "network", 0)
	onePodAddress := object{"via": "grpc", "target": "service-b", "balancedBy": "network", "addresses": []string{"10.0.0.2:9090"}}
	over := func(via string, f object) object { return object{via: f} }
	// idle are figures of calls that ended more than 5 s ago.
	idle := func(f object) object { f["rate"] = 0; return f }
	three := func(via string, a, b, c int) []object {
		all := []object{}
		for i, n := range []int{a, b, c} {
			calls := object{}
			if n > 0 {
				calls = over(via, figures(n, 1, nil))
			}
			all = append(all, pod(i+1, "ready", nil, calls))
		}
		return all
	}
	for name, c := range map[string]struct {
		ways, pods []object
		unserved   object
		calls      []object
		want       []string
	}{
		"no calls": {
			ways: []object{http, grpc}, pods: three("http", 0, 0, 0),
			want: []string{"No calls to the 3 pods of service-b now. Choose a rate or send a burst to see where calls go."},
		},
		"no calls, one pod": {
			ways: []object{http, grpc}, pods: []object{pod(1, "ready", nil, object{})},
			want: []string{"No calls to the pod of service-b now. Choose a rate or send a burst to see where calls go."},
		},
		"pinned": {
			ways: []object{http, grpc, service}, pods: three("grpc-service", 0, 200, 0),
			want: []string{"All 200 gRPC calls went to one pod, because a ClusterIP picks a pod per connection and gRPC keeps one connection."},
		},
		"even": {
			ways: []object{http, grpc, service}, pods: three("grpc", 67, 66, 67),
			want: []string{"The 200 gRPC calls spread evenly over 3 pods (33 to 34 % each): the name has an address for each pod, and service-a picks one for each call."},
		},
		"HTTP spreads": {
			ways: []object{http, grpc}, pods: three("http", 100, 40, 60),
			want: []string{"The 200 HTTP calls went to 3 pods (20 to 50 % each): a ClusterIP picks a pod at random for each connection, and HTTP keeps several. That spreads calls, but not evenly."},
		},
		"HTTP on one connection": {
			ways: []object{http, grpc}, pods: three("http", 20, 0, 0),
			want: []string{"All 20 HTTP calls went to one pod: a ClusterIP picks a pod per connection, and service-a reuses its connection. More calls at a time open more connections, and reach other pods."},
		},
		"one pod": {
			ways: []object{onePodAddress}, pods: []object{pod(1, "ready", nil, over("grpc", figures(20, 1, nil)))},
			want: []string{"All 20 gRPC calls went to b-1, the only pod behind the name. With more pods, calls spread."},
		},
		"not ready, without calls": {
			ways: []object{http, grpc}, pods: []object{pod(1, "notReady", nil, object{}), pod(2, "ready", nil, object{}), pod(3, "ready", nil, object{})},
			want: []string{"b-1 is not ready. Make calls to see whether any still go to it."},
		},
		"not ready, and calls ended": {
			ways: []object{http, grpc}, pods: []object{pod(1, "notReady", nil, over("grpc", idle(figures(3, 1, nil)))), pod(2, "ready", nil, over("grpc", idle(figures(3, 1, nil))))},
			want: []string{"b-1 is not ready. Make calls to see whether any still go to it."},
		},
		"not ready, and gets no calls": {
			ways: []object{http, grpc},
			pods: []object{pod(1, "notReady", nil, over("grpc", idle(figures(20, 1, nil)))), pod(2, "ready", nil, over("grpc", figures(90, 1, nil))), pod(3, "ready", nil, over("grpc", figures(90, 1, nil)))},
			want: []string{
				"b-1 is not ready, so calls go to b-2 and b-3 instead. No call has to fail for that.",
				"The 200 gRPC calls went to 3 pods (10 to 45 % each): the name has an address for each pod, and service-a picks one for each call, but avoids a pod that is new, slow or failing.",
			},
		},
		"not ready, and connections through a ClusterIP stay": {
			ways: []object{http, grpc}, pods: []object{pod(1, "notReady", nil, over("http", figures(80, 1, nil))), pod(2, "ready", nil, over("http", figures(20, 1, nil)))},
			want: []string{
				"b-1 is not ready, but 80 % of the HTTP calls still go to it: a ClusterIP picks a pod per connection, and open connections stay on their pod until service-b closes them at MAX_CONNECTION_AGE.",
				"The 100 HTTP calls went to 2 pods (20 to 80 % each): a ClusterIP picks a pod at random for each connection, and HTTP keeps several. That spreads calls, but not evenly.",
			},
		},
		// As with Docker Compose.
		"not ready, and the name lists it": {
			ways: []object{way("http", "client", 3), grpc}, pods: []object{pod(1, "notReady", nil, over("http", figures(20, 1, nil))), pod(2, "ready", nil, over("http", figures(20, 1, nil))), pod(3, "ready", nil, over("http", figures(20, 1, nil)))},
			want: []string{
				"b-1 is not ready, but 33 % of the HTTP calls still go to it: the name still lists its address, and over HTTP service-a has no other sign that a pod is not ready.",
				"The 60 HTTP calls spread evenly over 3 pods (33 % each): the name has an address for each pod, and service-a picks one for each call.",
			},
		},
		// The last calls of a pod that gets no more.
		"not ready since a moment": {
			ways: []object{http, grpc}, pods: []object{pod(1, "notReady", nil, over("grpc", figures(50, 1, nil))), pod(2, "notReady", nil, over("grpc", figures(50, 1, nil))), pod(3, "ready", nil, over("grpc", figures(100, 1, nil)))},
			want: []string{
				"b-1 and b-2 are not ready, but got 50 % of the gRPC calls of the last few seconds.",
				"The 200 gRPC calls went to 3 pods (25 to 50 % each): the name has an address for each pod, and service-a picks one for each call, but avoids a pod that is new, slow or failing.",
			},
		},
		"no address": {
			ways: []object{way("http", "", 0), way("grpc", "", 0)}, pods: []object{pod(1, "gone", nil, object{})},
			unserved: object{"grpc": object{"dns": 7}},
			want:     []string{"The name of service-b has no address: no pod is ready. Calls fail with class dns, and succeed again by themselves when a pod is ready."},
		},
		"gone": {
			ways: []object{http, grpc}, pods: []object{pod(1, "gone", nil, object{})}, unserved: object{"http": object{"refused": 40, "timeout": 2}},
			want: []string{"service-b is gone: all 42 calls failed (40 refused, 2 timeout). service-a limits its retries, so that service-b is not flooded when it returns."},
		},
		"slow": {
			ways: []object{http, grpc},
			pods: []object{pod(1, "ready", nil, over("grpc", figures(50, 1, nil))), pod(2, "ready", nil, over("grpc", figures(10, 300, nil))), pod(3, "ready", nil, over("grpc", figures(50, 1, nil)))},
			want: []string{
				"b-2 is slow: half of its calls take over 300 ms, those of the other pods 1.0 ms. service-a sends it fewer calls, because too many of them are pending.",
				"The 110 gRPC calls went to 3 pods (9 to 45 % each): the name has an address for each pod, and service-a picks one for each call, but avoids a pod that is new, slow or failing.",
			},
		},
		"connections are set up": {
			ways: []object{http, grpc},
			pods: []object{pod(1, "ready", nil, over("grpc", figures(67, 39, nil))), pod(2, "ready", nil, over("grpc", figures(66, 5, nil))), pod(3, "ready", nil, over("grpc", figures(67, 5, nil)))},
			want: []string{"The 200 gRPC calls spread evenly over 3 pods (33 to 34 % each): the name has an address for each pod, and service-a picks one for each call."},
		},
		"slow in a few calls": {
			ways: []object{http},
			pods: []object{pod(1, "ready", nil, over("http", figures(9, 300, nil))), pod(2, "ready", nil, over("http", figures(11, 1, nil)))},
			want: []string{"The 20 HTTP calls spread evenly over 2 pods (45 to 55 % each): by chance, as a ClusterIP picks a pod for each connection, or because a mesh's sidecar picks one for each call."},
		},
		"ejected": {
			ways: []object{grpc},
			pods: []object{pod(1, "ready", object{"errorRate": 0.5}, over("grpc", figures(2, 1, nil))), pod(2, "ready", nil, over("grpc", figures(99, 1, nil))), pod(3, "ready", nil, over("grpc", figures(99, 1, nil)))},
			want: []string{
				"b-1 fails 50 % of its requests, so service-a ejected it: it gets almost no gRPC calls, except one every 10 s that tests it. No call failed.",
				"The 200 gRPC calls went to 3 pods (1 to 50 % each): the name has an address for each pod, and service-a picks one for each call, but avoids a pod that is new, slow or failing.",
			},
		},
		"retried": {
			ways:  []object{http},
			pods:  []object{pod(1, "ready", object{"errorRate": 0.3}, over("http", figures(30, 1, nil))), pod(2, "ready", nil, over("http", figures(30, 1, nil)))},
			calls: []object{{"via": "http", "class": "ok", "call": object{"attempts": 2}}},
			want: []string{
				"b-1 fails 30 % of its requests, and yet all 60 calls succeeded: service-a retries what failed, on another pod if it can choose.",
				"The 60 HTTP calls spread evenly over 2 pods (50 % each): by chance, as a ClusterIP picks a pod for each connection, or because a mesh's sidecar picks one for each call.",
			},
		},
		"failing, and not called": {
			ways: []object{http, grpc, service},
			pods: []object{pod(1, "ready", object{"errorRate": 0.5}, object{}), pod(2, "ready", nil, over("grpc-service", figures(585, 1, nil)))},
			want: []string{
				"b-1 fails 50 % of its requests, but gets none: all 585 calls went to another pod.",
				"All 585 gRPC calls went to one pod, because a ClusterIP picks a pod per connection and gRPC keeps one connection.",
			},
		},
		"failing, and not called, while others fail": {
			ways: []object{http, grpc, service},
			pods: []object{pod(1, "ready", object{"errorRate": 0.5}, object{}), pod(2, "ready", nil, over("http", figures(20, 1, object{"timeout": 1}))), pod(3, "ready", nil, over("http", figures(20, 1, nil)))},
			want: []string{
				"b-1 fails 50 % of its requests, but gets none: all 40 calls went to 2 other pods.",
				"1 of 40 HTTP calls failed, most with class timeout: the deadline passed.",
			},
		},
		"failing, and nothing retried yet": {
			ways: []object{http},
			pods: []object{pod(1, "ready", object{"errorRate": 0.3}, over("http", figures(30, 1, nil))), pod(2, "ready", nil, over("http", figures(30, 1, nil)))},
			want: []string{
				"b-1 fails 30 % of its requests. All 60 calls have succeeded so far.",
				"The 60 HTTP calls spread evenly over 2 pods (50 % each): by chance, as a ClusterIP picks a pod for each connection, or because a mesh's sidecar picks one for each call.",
			},
		},
		"calls fail": {
			ways: []object{http},
			pods: []object{pod(1, "ready", nil, over("http", figures(30, 1, object{"timeout": 12}))), pod(2, "ready", nil, over("http", figures(30, 1, nil)))},
			want: []string{"12 of 60 HTTP calls failed, most with class timeout: the deadline passed."},
		},
		"moved": {
			ways: []object{http, grpc, service},
			pods: []object{pod(1, "ready", nil, over("grpc-service", idle(figures(50, 1, nil)))), pod(2, "ready", nil, over("grpc-service", figures(50, 1, nil))), pod(3, "ready", nil, object{})},
			want: []string{"The 100 gRPC calls went to one pod at a time: when gRPC's connection ends, a ClusterIP may pick another pod for the next one. Now it is b-2."},
		},
		"moved, and one pod not ready": {
			ways: []object{http, grpc, service},
			pods: []object{pod(1, "notReady", nil, over("grpc-service", idle(figures(70, 1, nil)))), pod(2, "ready", nil, over("grpc-service", figures(30, 1, nil)))},
			want: []string{
				"b-1 is not ready, so calls go to b-2 instead. No call has to fail for that.",
				"The 100 gRPC calls went to one pod at a time: when gRPC's connection ends, a ClusterIP may pick another pod for the next one. Now it is b-2.",
			},
		},
		"a mesh picks a pod per call": {
			ways: []object{http, grpc, service}, pods: three("grpc-service", 50, 50, 0),
			want: []string{"The 100 gRPC calls spread evenly over 2 pods (50 % each), although the name has one address: a proxy, such as a mesh's sidecar, picks a pod for each call."},
		},
		"a mesh, and a pod that is gone": {
			ways: []object{http, grpc, service},
			pods: []object{pod(1, "gone", nil, over("grpc-service", idle(figures(5, 1, nil)))), pod(2, "ready", nil, over("grpc-service", figures(50, 1, nil))), pod(3, "ready", nil, over("grpc-service", figures(45, 1, nil)))},
			want: []string{"The 100 gRPC calls spread evenly over 2 pods (47 to 53 % each), although the name has one address: a proxy, such as a mesh's sidecar, picks a pod for each call."},
		},
		"HTTP spreads evenly": {
			ways: []object{http, grpc}, pods: three("http", 70, 60, 70),
			want: []string{"The 200 HTTP calls spread evenly over 3 pods (30 to 35 % each): by chance, as a ClusterIP picks a pod for each connection, or because a mesh's sidecar picks one for each call."},
		},
		"headless name with one address left": {
			ways: []object{onePodAddress},
			pods: []object{pod(1, "notReady", nil, over("grpc", idle(figures(50, 1, nil)))), pod(2, "ready", nil, over("grpc", figures(50, 1, nil)))},
			want: []string{
				"b-1 is not ready, so calls go to b-2 instead. No call has to fail for that.",
				"The 100 gRPC calls went to 2 pods (50 % each). Now the name has one address, that of b-2, and calls go to this pod only.",
			},
		},
		"none ready": {
			ways: []object{http, way("grpc", "", 0)}, pods: []object{pod(1, "notReady", nil, object{}), pod(2, "notReady", nil, object{})},
			want: []string{"b-1 and b-2 are not ready, and there is no other pod. The headless name has no address now. Make calls to see whether they succeed."},
		},
		"none ready, and calls over the headless name fail": {
			ways: []object{http, way("grpc", "", 0)}, pods: []object{pod(1, "notReady", nil, object{})}, unserved: object{"grpc": object{"dns": 4}},
			want: []string{"b-1 is not ready, and there is no other pod. The headless name has no address now. Calls fail."},
		},
		"none ready, and calls succeed": {
			ways: []object{http, onePodAddress}, pods: []object{pod(2, "notReady", nil, over("grpc", figures(20, 1, nil)))},
			want: []string{
				"b-2 is not ready, and there is no other pod. Calls still succeed.",
				"All 20 gRPC calls went to b-2, the only pod behind the name. With more pods, calls spread.",
			},
		},
		"none ready, and some calls fail": {
			ways: []object{http, onePodAddress}, pods: []object{pod(2, "notReady", nil, over("grpc", figures(300, 1, object{"timeout": 2})))},
			want: []string{
				"b-2 is not ready, and there is no other pod. Some calls fail.",
				"All 300 gRPC calls went to b-2, the only pod behind the name. With more pods, calls spread.",
			},
		},
		"none ready, and all calls fail": {
			ways: []object{http, grpc}, pods: []object{pod(1, "notReady", nil, object{}), pod(2, "notReady", nil, object{})}, unserved: object{"grpc": object{"dns": 40}},
			want: []string{"b-1 and b-2 are not ready, and there is no other pod. Calls fail.", "40 of 40 gRPC calls failed, most with class dns: the name has no address, or DNS did not respond."},
		},
		"addresses that do not respond": {
			ways: []object{http, grpc}, pods: []object{{"ip": "10.0.0.1", "state": "notReady"}}, unserved: object{"http": object{"unavailable": 40}},
			want: []string{"service-b is gone: all 40 calls failed (40 unavailable). service-a limits its retries, so that service-b is not flooded when it returns."},
		},
		"all calls fail, though pods are ready": {
			ways: []object{http, grpc},
			pods: []object{pod(1, "ready", nil, over("grpc", figures(30, 0, object{"denied": 30}))), pod(2, "notReady", nil, object{})}, unserved: object{"http": object{"timeout": 12}},
			want: []string{"No call succeeds: all 42 calls failed (30 denied, 12 timeout). service-a limits its retries, so that it does not make an outage worse."},
		},
		"one of two pods fails all calls": {
			ways: []object{grpc},
			pods: []object{pod(1, "ready", nil, over("grpc", figures(50, 0, object{"unavailable": 50}))), pod(2, "ready", nil, over("grpc", figures(50, 30, nil)))},
			want: []string{"50 of 100 gRPC calls failed, most with class unavailable: the pod is overloaded, draining or unreachable, or broke the connection."},
		},
		"failing without calls": {
			ways: []object{http, grpc}, pods: []object{pod(1, "ready", object{"errorRate": 0.5}, object{}), pod(2, "ready", nil, object{})},
			want: []string{"b-1 fails 50 % of its requests. Make calls to see what service-a does about it."},
		},
		"failing": {
			ways: []object{http},
			pods: []object{pod(1, "ready", object{"errorRate": 0.5}, over("http", figures(300, 1, object{"unavailable": 2}))), pod(2, "ready", nil, over("http", figures(100, 1, nil)))},
			want: []string{
				"b-1 fails 50 % of its requests, and 2 calls of 400 failed: service-a retries, but only within a budget, because retries must not make an outage worse.",
				"The 400 HTTP calls went to 2 pods (25 to 75 % each): a ClusterIP picks a pod at random for each connection, and HTTP keeps several. That spreads calls, but not evenly.",
			},
		},
		// An unequal spread is said, an equal one is not, while there is something else to say.
		"slow over one of two ways": {
			ways: []object{http, grpc},
			pods: []object{
				pod(1, "ready", nil, object{"http": figures(50, 1, nil), "grpc": figures(80, 1, nil)}),
				pod(2, "ready", nil, object{"http": figures(50, 300, nil), "grpc": figures(10, 1, nil)}),
			},
			want: []string{
				"b-2 is slow: half of its calls take over 300 ms, those of the other pods 1.0 ms. The median of all calls hides it; the p99 shows it.",
				"The 90 gRPC calls went to 2 pods (11 to 89 % each): the name has an address for each pod, and service-a picks one for each call, but avoids a pod that is new, slow or failing.",
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			snapshot, err := json.Marshal(object{"at": 1, "ways": c.ways, "pods": c.pods, "unserved": c.unserved, "calls": c.calls, "more": 0})
			require.NoError(t, err)
			got := eval[[]string](t, tab, fmt.Sprintf(`Promise.all([import('/static/lesson.js'), import('/static/model.js')])
				.then(([{ lessons }, { model }]) => lessons(model(%s)).map((l) => l.text))`, snapshot))
			assert.Equal(t, c.want, got)
		})
	}
}
