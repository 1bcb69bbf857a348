package grpcclient

import (
	"google.golang.org/grpc/balancer"
	"google.golang.org/grpc/balancer/endpointsharding"
	"google.golang.org/grpc/balancer/pickfirst"
	"google.golang.org/grpc/connectivity"

	"example.com/tandem/kit/internal/endpoint"
)

// policyName is the name of the balancing policy in the service config.
const policyName = "round_robin_with_ejection"

// policy is gRPC's round_robin, with two differences: package endpoint chooses the
// endpoint of each attempt, and update in resolver.go decides whether health is
// watched. Plain round_robin gives a pod that hangs, or whose node has vanished, its
// full share until its health changes or keepalive closes the connection after 15 s.
// gRPC's own outlier_detection needs xDS.
type policy struct{}

// gRPC has one registry of policies for the process, which may be changed during
// initialization only. The policy holds no state: Build creates that of a client.
func init() { balancer.Register(policy{}) } //nolint:gochecknoinits // see above

// Name returns the name in the service config.
func (policy) Name() string { return policyName }

// Build returns the balancer that round_robin wraps, with another picker. It has one
// pick_first for each endpoint, which connects, reconnects and watches health.
func (policy) Build(cc balancer.ClientConn, o balancer.BuildOptions) balancer.Balancer {
	b := &pickerReplacer{ClientConn: cc, endpoints: endpoint.NewSet(addrOf)}
	return endpointsharding.NewBalancer(b, o, balancer.Get(pickfirst.Name).Build, endpointsharding.Options{})
}

// pickerReplacer is the ClientConn that endpointsharding updates. It passes every
// update on to gRPC's ClientConn, with a picker of this package.
type pickerReplacer struct {
	balancer.ClientConn
	endpoints *endpoint.Set[endpointsharding.ChildState]
}

// UpdateState is called with the state of every endpoint, one call at a time.
// The failures of an endpoint are kept while DNS lists its address, even while it
// is disconnected: a pod that hangs may still hang after a reconnect.
func (b *pickerReplacer) UpdateState(state balancer.State) {
	var ready []endpointsharding.ChildState
	var known []string
	connecting := 0
	children := endpointsharding.ChildStatesFromPicker(state.Picker)
	recordStates(children)
	for _, child := range children {
		known = append(known, addrOf(child))
		switch child.State.ConnectivityState {
		case connectivity.Ready:
			ready = append(ready, child)
		case connectivity.Connecting, connectivity.Idle: // endpointsharding connects idle endpoints
			connecting++
		default: // the connection failed, or the server's health is NOT_SERVING
		}
	}
	b.endpoints.Expect(connecting)
	b.endpoints.Update(ready, known...)
	if len(ready) > 0 {
		state.Picker = picker{b.endpoints}
	}
	b.ClientConn.UpdateState(state)
}

func addrOf(child endpointsharding.ChildState) string { return child.Endpoint.Addresses[0].Addr }
