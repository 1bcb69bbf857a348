package grpcclient

import (
	"math"
	"sync/atomic"

	"google.golang.org/grpc/balancer"
	"google.golang.org/grpc/balancer/endpointsharding"
	"google.golang.org/grpc/balancer/roundrobin"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/resolver"
)

// policy is round_robin less the outliers and those where attempts wait. Plain
// round_robin gives a pod that hangs, or whose node has vanished, its whole
// share until its health says otherwise or its connection is found to be dead,
// which takes 15 s. gRPC's own outlier_detection comes with xDS only.
type policy struct{}

// gRPC knows balancers by a registry of the process, which it lets be written
// to during initialization only. This one keeps nothing: what is known of
// endpoints is each connection's own.
func init() { balancer.Register(policy{}) } //nolint:gochecknoinits // see above

// Name is how the service config calls it.
func (policy) Name() string { return "round_robin_less_outliers" }

// Build makes a round_robin, whose connections, health checks and reconnects
// stay its own, and puts a picker of ours in place of each of its pickers.
func (policy) Build(cc balancer.ClientConn, o balancer.BuildOptions) balancer.Balancer {
	return balancer.Get(roundrobin.Name).Build(&pickers{ClientConn: cc, known: resolver.NewEndpointMap[*endpoint](), group: &group{}}, o)
}

// pickers stands between a round_robin and its connection.
type pickers struct {
	balancer.ClientConn
	known *resolver.EndpointMap[*endpoint]
	group *group
}

// UpdateState is told of each endpoint's state, one call after the other. What
// is known of an endpoint is kept while its name stands for it: a pod that
// hangs is not mended by a new connection.
func (p *pickers) UpdateState(state balancer.State) {
	known := resolver.NewEndpointMap[*endpoint]()
	next := &picker{}
	var ready []*endpoint
	for _, child := range endpointsharding.ChildStatesFromPicker(state.Picker) {
		e, ok := p.known.Get(child.Endpoint)
		if !ok {
			e = &endpoint{of: p.group}
		}
		known.Set(child.Endpoint, e)
		if child.State.ConnectivityState == connectivity.Ready {
			next.ring = append(next.ring, place{child.State.Picker, e})
			ready = append(ready, e)
		}
	}
	p.known = known
	p.group.mu.Lock()
	p.group.ready = ready
	p.group.mu.Unlock()
	if len(ready) > 0 {
		state.Picker = next
	}
	p.ClientConn.UpdateState(state)
}

// picker takes the endpoint where the fewest attempts wait, and goes round over
// those where equally many do.
type picker struct {
	ring []place
	next atomic.Int64
}

type place struct {
	balancer.Picker
	endpoint *endpoint
}

// Pick also takes an endpoint whose trial is due. Where attempts wait tells of
// a pod that hangs long before one of them is late, and of one that is slow.
func (p *picker) Pick(info balancer.PickInfo) (balancer.PickResult, error) {
	start := p.start()
	best, trial, least := p.ring[start], false, int32(math.MaxInt32)
	for i := range p.ring {
		at := p.ring[(start+i)%len(p.ring)]
		if at.endpoint.beginTrial() {
			best, trial = at, true
			break
		}
		if waiting := at.endpoint.waiting.Load(); waiting < least && at.endpoint.isIn() {
			best, least = at, waiting
		}
	}
	if a := attemptOf(info.Ctx); a != nil {
		a.send(best.endpoint, trial)
	}
	return best.Pick(info)
}

// start is where the round goes on: not at an endpoint that is left out, whose
// neighbour would have a double share.
func (p *picker) start() int {
	var at int
	for range p.ring {
		at = int(p.next.Add(1) % int64(len(p.ring)))
		if p.ring[at].endpoint.isIn() {
			break
		}
	}
	return at
}
