package grpcclient

import (
	"context"
	"errors"
	"net"
	"strconv"
	"time"

	"google.golang.org/grpc/resolver"

	"example.com/tandem/kit/internal/lookup"
)

// lookupAfterFailure is the pause between lookups that fail. gRPC's own resolver
// waits 30 s after a success, and up to 2 minutes after failures: for as long, a
// service that is back would not be found.
const lookupAfterFailure = 2 * time.Second

// scheme is that of gRPC's own resolver, which ours replaces.
const scheme = "dns"

// hostPort returns the name and the port of a target.
func hostPort(target resolver.Target) (host, port string, err error) {
	host, port, err = net.SplitHostPort(target.Endpoint())
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	// An authority would name a DNS server; the system's is used.
	if target.URL.Scheme != scheme || target.URL.Host != "" || err != nil || host == "" {
		return "", "", errors.New("want dns:///HOST:PORT")
	}
	return host, port, nil
}

// builder makes the resolver of one client.
type builder struct{ state *state }

// Scheme returns dns.
func (builder) Scheme() string { return scheme }

// Build starts to resolve the client's target.
func (b builder) Build(_ resolver.Target, cc resolver.ClientConn, _ resolver.BuildOptions) (resolver.Resolver, error) {
	ctx, cancel := context.WithCancel(context.Background())
	r := &nameResolver{name: b.state.name, cc: cc, wanted: make(chan struct{}, 1), cancel: cancel, done: make(chan struct{})}
	go r.run(ctx)
	return r, nil
}

// nameResolver passes the addresses of a name on to a gRPC client.
type nameResolver struct {
	name   *lookup.Name
	cc     resolver.ClientConn
	wanted chan struct{}
	cancel context.CancelFunc
	done   chan struct{}
}

func (r *nameResolver) run(ctx context.Context) {
	defer close(r.done)
	for {
		wanted, pause := r.wanted, lookup.Jitter(lookup.RefreshEvery)
		if err := r.name.Lookup(ctx); err != nil {
			if addrs, _ := r.name.Known(); addrs == nil {
				r.update() // the name is gone, and its addresses may be somebody else's by now
			}
			r.cc.ReportError(err) // which leaves the addresses that gRPC has
			wanted, pause = nil, lookup.Jitter(lookupAfterFailure)
		} else {
			r.update()
		}
		select {
		case <-wanted:
		case <-time.After(pause):
		case <-ctx.Done():
			return
		}
	}
}

func (r *nameResolver) update() {
	var state resolver.State
	addrs, _ := r.name.Known()
	for _, addr := range addrs {
		state.Endpoints = append(state.Endpoints, resolver.Endpoint{Addresses: []resolver.Address{{Addr: addr}}})
	}
	// Its error asks for another lookup soon, which comes in any case.
	_ = r.cc.UpdateState(state)
}

// ResolveNow asks for a lookup; it does not wait for it. gRPC calls it whenever
// a connection ends.
func (r *nameResolver) ResolveNow(resolver.ResolveNowOptions) {
	select {
	case r.wanted <- struct{}{}:
	default: // it is wanted already
	}
}

// Close ends the resolver, and waits until it has ended.
func (r *nameResolver) Close() {
	r.cancel()
	<-r.done
}
