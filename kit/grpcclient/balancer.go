package grpcclient

import (
	"math"
	"slices"
	"sync/atomic"

	"google.golang.org/grpc/balancer"
	"google.golang.org/grpc/balancer/endpointsharding"
	"google.golang.org/grpc/balancer/roundrobin"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/resolver"
)

// policy is round_robin less the outliers and the crowded. Plain round_robin
// gives a pod that hangs, or whose node has vanished, its whole share until its
// health says otherwise or its connection is found to be dead, which takes 15 s.
// gRPC's own outlier_detection comes with xDS only.
type policy struct{}

// gRPC knows balancers by a registry of the process, which it lets be written
// to during initialization only. This one keeps nothing: what is known of
// endpoints is each connection's own.
func init() { balancer.Register(policy{}) } //nolint:gochecknoinits // see above

const policyName = "round_robin_less_outliers"

// Name is how the service config calls it.
func (policy) Name() string { return policyName }

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

// picker goes round over the endpoints, less those where far more attempts wait
// than elsewhere: that tells of a pod that hangs, or is slow, long before one of
// them is late. (Where simply the fewest wait, the quickest would have most.)
type picker struct {
	ring []place
	next atomic.Uint64
}

type place struct {
	balancer.Picker
	endpoint *endpoint
}

// crowded is how many attempts may wait at an endpoint for it to have its turn,
// where least is how many wait at the one where the fewest do.
func crowded(least int32) int32 { return 2*least + 1 }

// Pick takes an endpoint whose trial is due, or the one whose turn it is.
func (p *picker) Pick(info balancer.PickInfo) (balancer.PickResult, error) {
	var few [32]int // so that for as many there is nothing to allocate
	in, least := few[:0], int32(math.MaxInt32)
	for i, at := range p.ring {
		if at.endpoint.beginTrial() {
			return at.send(info, true)
		}
		if at.endpoint.isIn() {
			in, least = append(in, i), min(least, at.endpoint.waiting.Load())
		}
	}
	in = slices.DeleteFunc(in, func(i int) bool { return p.ring[i].endpoint.waiting.Load() > crowded(least) })
	turn := p.next.Add(1)
	if len(in) == 0 { // meanwhile it got crowded everywhere
		return p.ring[turn%uint64(len(p.ring))].send(info, false)
	}
	return p.ring[in[turn%uint64(len(in))]].send(info, false)
}

func (at place) send(info balancer.PickInfo, trial bool) (balancer.PickResult, error) {
	if a := attemptOf(info.Ctx); a != nil {
		a.send(at.endpoint, trial)
	}
	return at.Pick(info)
}
