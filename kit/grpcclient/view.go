package grpcclient

import (
	"google.golang.org/grpc"
	"google.golang.org/grpc/attributes"
	"google.golang.org/grpc/balancer/endpointsharding"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/resolver"

	"example.com/tandem/kit/call"
)

// View shows the endpoints that a client knows; see Options.View.
type View struct {
	conn  *grpc.ClientConn
	state *connState
}

// Endpoints returns the addresses that the client's target resolves to now, and whether
// they are ready. It waits for nothing: if the client has not connected yet, or no longer
// is, it begins to.
func (v *View) Endpoints() []call.Endpoint {
	if v.conn.GetState() == connectivity.Idle {
		v.conn.Connect()
	}
	addrs, _ := v.state.name.Known()
	notReady := v.state.notReady.Load()
	var endpoints []call.Endpoint
	for _, addr := range addrs {
		endpoints = append(endpoints, call.Endpoint{Addr: addr, NotReady: notReady != nil && (*notReady)[addr]})
	}
	return endpoints
}

type viewKey struct{}

// withView makes the balancer record the state of an endpoint in c.
func (c *connState) withView(e resolver.Endpoint) resolver.Endpoint {
	e.Attributes = attributes.New(viewKey{}, c)
	return e
}

// recordStates records which endpoints are not ready, for View. A client has one
// connState, which all its endpoints carry.
func recordStates(children []endpointsharding.ChildState) {
	if len(children) == 0 {
		return
	}
	c, ok := children[0].Endpoint.Attributes.Value(viewKey{}).(*connState)
	if !ok {
		return
	}
	notReady := map[string]bool{}
	for _, child := range children {
		if child.State.ConnectivityState == connectivity.TransientFailure {
			notReady[addrOf(child)] = true
		}
	}
	c.notReady.Store(&notReady)
}
