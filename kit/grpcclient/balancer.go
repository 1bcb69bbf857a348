package grpcclient

import (
	"google.golang.org/grpc/balancer"
	"google.golang.org/grpc/balancer/endpointsharding"
	"google.golang.org/grpc/balancer/roundrobin"
	"google.golang.org/grpc/connectivity"

	"example.com/tandem/kit/internal/endpoint"
)

// policyName is the name of the balancing policy in the service config.
const policyName = "round_robin_with_ejection"

// policy is round_robin with the choice of package endpoint. Plain round_robin
// gives a pod that hangs, or whose node has vanished, its full share until its
// health says otherwise or keepalive finds its connection dead, after 15 s.
// gRPC's own outlier_detection comes with xDS only.
type policy struct{}

// gRPC has one registry of policies for the process, which may be changed during
// initialization only. This policy keeps no state: each connection has its own.
func init() { balancer.Register(policy{}) } //nolint:gochecknoinits // see above

// Name returns the name in the service config.
func (policy) Name() string { return policyName }

// Build returns a round_robin, which keeps its connections, health checks and
// reconnects, and replaces its picker.
func (policy) Build(cc balancer.ClientConn, o balancer.BuildOptions) balancer.Balancer {
	b := &pickerReplacer{ClientConn: cc, endpoints: endpoint.NewSet(addrOf)}
	return balancer.Get(roundrobin.Name).Build(b, o)
}

// pickerReplacer stands between round_robin and its connection.
type pickerReplacer struct {
	balancer.ClientConn
	endpoints *endpoint.Set[endpointsharding.ChildState]
}

func addrOf(child endpointsharding.ChildState) string { return child.Endpoint.Addresses[0].Addr }

// UpdateState is called with the state of every endpoint, one call at a time.
// The failures of an endpoint are kept while DNS lists it, even while it is
// disconnected: a new connection does not cure a pod that hangs.
func (b *pickerReplacer) UpdateState(state balancer.State) {
	var ready []endpointsharding.ChildState
	var known []string
	connecting := 0
	for _, child := range endpointsharding.ChildStatesFromPicker(state.Picker) {
		known = append(known, addrOf(child))
		switch child.State.ConnectivityState {
		case connectivity.Ready:
			ready = append(ready, child)
		case connectivity.Connecting, connectivity.Idle: // round_robin connects what is idle
			connecting++
		default: // it could not connect, or its health is NOT_SERVING
		}
	}
	b.endpoints.Expect(connecting)
	b.endpoints.Update(ready, known...)
	if len(ready) > 0 {
		state.Picker = picker{b.endpoints}
	}
	b.ClientConn.UpdateState(state)
}

type picker struct {
	endpoints *endpoint.Set[endpointsharding.ChildState]
}

// Pick chooses the endpoint of an attempt.
func (p picker) Pick(info balancer.PickInfo) (balancer.PickResult, error) {
	a := attemptOf(info.Ctx)
	child, picked, ok := p.endpoints.Pick(a.avoid, a.stream)
	if !ok { // all that are not ejected reconnect: gRPC waits for the next picker
		return balancer.PickResult{}, balancer.ErrNoSubConnAvailable
	}
	result, err := child.State.Picker.Pick(info)
	if err != nil {
		picked.End(endpoint.Ignored)
		return result, err
	}
	a.begin(picked)
	result.Done = a.done // the child, a pick_first, has none
	return result, nil
}
