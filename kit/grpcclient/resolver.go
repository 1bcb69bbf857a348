package grpcclient

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"time"

	"google.golang.org/grpc/resolver"
)

const (
	// lookupTimeout of one query for a name.
	lookupTimeout = 3 * time.Second
	// lookupAgain is how soon a name is looked up anew: after a failure by
	// itself, else when gRPC asks for it, which it does whenever a connection
	// ends. gRPC's own resolver waits 30 s after a success, and after failures
	// up to 2 minutes: for as long, a service that is back would not be found.
	lookupAgain = 2 * time.Second
	// lookupEvery is how old an answer may get that nobody asked to renew.
	// Else a client that asked while only one of three pods was ready would know
	// of no other until that one's connection ends.
	lookupEvery = 10 * time.Second
)

// builder makes resolvers for dns:///HOST:PORT.
type builder struct{ watch *watcher }

// Scheme is that of gRPC's own resolver, in whose place this one stands.
func (builder) Scheme() string { return "dns" }

// split returns the name and the port of a target of ours. One that names a DNS
// server is an error too: the system's is asked.
func split(target resolver.Target) (host, port string, err error) {
	host, port, err = net.SplitHostPort(target.Endpoint())
	if err != nil || host == "" || port == "" || target.URL.Host != "" {
		return "", "", errors.New("want dns:///HOST:PORT")
	}
	return host, port, nil
}

// Build begins to resolve a target.
func (b builder) Build(target resolver.Target, cc resolver.ClientConn, _ resolver.BuildOptions) (resolver.Resolver, error) {
	host, port, err := split(target)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	r := &nameResolver{host: host, port: port, watch: b.watch, cc: cc, wanted: make(chan struct{}, 1), cancel: cancel, done: make(chan struct{})}
	b.watch.resolved(nil, fmt.Errorf("lookup %s: no answer yet", host))
	go r.run(ctx)
	return r, nil
}

// nameResolver keeps a connection supplied with the addresses of its name.
type nameResolver struct {
	host, port string
	watch      *watcher
	cc         resolver.ClientConn
	wanted     chan struct{}
	cancel     context.CancelFunc
	done       chan struct{}
}

func (r *nameResolver) run(ctx context.Context) {
	defer close(r.done)
	for {
		failed := r.resolve(ctx) != nil
		if !failed {
			select {
			case <-r.wanted:
			case <-time.After(lookupEvery):
			case <-ctx.Done():
				return
			}
		}
		select {
		// Jittered, so that callers that lost a service together do not ask together.
		case <-time.After(lookupAgain/2 + rand.N(lookupAgain)):
		case <-ctx.Done():
			return
		}
	}
}

// resolve looks the name up once. An error leaves the addresses that gRPC has.
func (r *nameResolver) resolve(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	hosts, err := net.DefaultResolver.LookupHost(ctx, r.host)
	if err != nil {
		r.watch.resolved(nil, err)
		r.cc.ReportError(err)
		return err
	}
	var state resolver.State
	addrs := make([]string, len(hosts))
	for i, h := range hosts {
		addrs[i] = net.JoinHostPort(h, r.port)
		state.Endpoints = append(state.Endpoints, resolver.Endpoint{Addresses: []resolver.Address{{Addr: addrs[i]}}})
	}
	r.watch.resolved(addrs, nil)
	return r.cc.UpdateState(state)
}

// ResolveNow asks for a lookup; it does not wait for it.
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
