package grpcclient

import (
	"context"
	"errors"
	"net"
	"strconv"
	"time"

	"google.golang.org/grpc/balancer/pickfirst"
	"google.golang.org/grpc/resolver"

	"example.com/tandem/kit/call"
	"example.com/tandem/kit/internal/lookup"
)

// lookupAfterFailure is the pause after a failed lookup, before jitter. gRPC's
// own resolver waits 30 s after a success and up to 2 minutes after failures, and
// might not find a service that is back for that long.
const lookupAfterFailure = 2 * time.Second

// scheme is that of gRPC's own resolver, which this one replaces.
const scheme = "dns"

// hostPort returns the host and the port of a target.
func hostPort(target resolver.Target) (host, port string, err error) {
	host, port, err = net.SplitHostPort(target.Endpoint())
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	// The URL's host would name a DNS server. Only the system's is supported.
	if target.URL.Scheme != scheme || target.URL.Host != "" || err != nil || host == "" {
		return "", "", errors.New("want dns:///HOST:PORT")
	}
	return host, port, nil
}

// builder creates the resolver of one client.
type builder struct{ conn *connState }

// Scheme returns dns.
func (builder) Scheme() string { return scheme }

// Build starts to resolve the client's target.
func (b builder) Build(_ resolver.Target, cc resolver.ClientConn, _ resolver.BuildOptions) (resolver.Resolver, error) {
	ctx, cancel := context.WithCancel(context.Background())
	r := &nameResolver{conn: b.conn, name: b.conn.name, cc: cc, requested: make(chan struct{}, 1), cancel: cancel, done: make(chan struct{})}
	go r.run(ctx)
	return r, nil
}

// nameResolver passes the addresses of a name on to a gRPC client.
type nameResolver struct {
	conn      *connState
	name      *lookup.Name
	cc        resolver.ClientConn
	requested chan struct{} // holds a value after ResolveNow
	cancel    context.CancelFunc
	done      chan struct{}
}

func (r *nameResolver) run(ctx context.Context) {
	defer close(r.done)
	for {
		requested, pause := r.requested, lookup.Jitter(lookup.RefreshEvery)
		if err := r.name.Lookup(ctx); err != nil {
			if addrs, _ := r.name.Known(); addrs == nil {
				r.update() // drops the addresses of a name that no longer exists: other pods may have them by now
			}
			r.cc.ReportError(err) // gRPC keeps its addresses
			// nil: after a failure, ResolveNow does not shorten the pause.
			requested, pause = nil, lookup.Jitter(lookupAfterFailure)
		} else {
			r.update()
		}
		select {
		case <-requested:
		case <-time.After(pause):
		case <-ctx.Done():
			return
		}
	}
}

// update passes the addresses on. If the name has one for each pod, new connections
// watch the health of their server. If it has a single one, the pod behind a connection
// or a watch is one of several, and its health says nothing about the next call's pod.
//
// When the number of addresses changes, open connections are not affected: they watch
// health, or do not, until they reach the maximum age that the server sets. Meanwhile
// a draining server serves the calls that an unwatched connection sends, up to its GOAWAY.
func (r *nameResolver) update() {
	var state resolver.State
	addrs, _ := r.name.Known()
	for _, addr := range addrs {
		state.Endpoints = append(state.Endpoints, r.conn.withView(resolver.Endpoint{Addresses: []resolver.Address{{Addr: addr}}}))
	}
	if call.BalancerOf(addrs) == call.BalancedByClient {
		state = pickfirst.EnableHealthListener(state)
	}
	_ = r.cc.UpdateState(state) // an error requests another lookup, which run makes anyway
}

// ResolveNow requests a lookup and returns at once. gRPC calls it whenever a
// connection ends.
func (r *nameResolver) ResolveNow(resolver.ResolveNowOptions) {
	select {
	case r.requested <- struct{}{}:
	default: // already requested
	}
}

// Close stops the resolver, and returns when it has stopped.
func (r *nameResolver) Close() {
	r.cancel()
	<-r.done
}
