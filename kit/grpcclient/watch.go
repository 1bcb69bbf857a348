package grpcclient

import (
	"context"
	"errors"
	"net"
	"sync"
	"syscall"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/status"

	"example.com/tandem/kit/call"
)

// errNoAddresses is how gRPC's resolver takes a name that does not exist.
var errNoAddresses = errors.New("the name has no addresses")

// watcher notes how a connection's name was last resolved and dialled. gRPC
// folds both into the text of an UNAVAILABLE; callers want to tell them apart.
type watcher struct {
	mu        sync.Mutex
	addrs     []string
	lookupErr error
	dialErr   error
}

func (w *watcher) addresses() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.addrs
}

// dial connects to one address. (That a dialer of our own is set also keeps
// gRPC from looking for a proxy.)
func (w *watcher) dial(ctx context.Context, addr string) (net.Conn, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.dialErr = err
	return conn, err
}

// classify gives a failed call its class; reached says whether any server was.
func (w *watcher) classify(err error, reached bool) error {
	if err == nil {
		return nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	code := status.Code(err)
	class := ClassOf(code)
	switch {
	case reached || code == codes.Canceled:
	case len(w.addrs) == 0 && (code == codes.Unavailable || code == codes.DeadlineExceeded):
		class = call.DNS
		if w.lookupErr != nil {
			err = status.Error(code, w.lookupErr.Error())
		}
	case code == codes.Unavailable && errors.Is(w.dialErr, syscall.ECONNREFUSED):
		class = call.Refused
	}
	return &call.Error{Class: class, Err: err}
}

// ClassOf is the class of a status code, as far as the code alone tells.
func ClassOf(code codes.Code) call.Class {
	switch code {
	case codes.OK:
		return call.OK
	case codes.Canceled:
		return call.Canceled
	case codes.DeadlineExceeded:
		return call.Timeout
	case codes.Unavailable:
		return call.Unavailable
	default:
		return call.Other
	}
}

// resolver is gRPC's own for DNS, overheard.
func (w *watcher) resolver() resolver.Builder {
	return builder{resolver.Get("dns"), w}
}

type builder struct {
	resolver.Builder
	watch *watcher
}

func (b builder) Build(target resolver.Target, cc resolver.ClientConn, opts resolver.BuildOptions) (resolver.Resolver, error) {
	return b.Builder.Build(target, overhearing{cc, b.watch}, opts)
}

type overhearing struct {
	resolver.ClientConn
	watch *watcher
}

func (o overhearing) UpdateState(s resolver.State) error {
	var addrs []string
	for _, e := range s.Endpoints {
		for _, a := range e.Addresses {
			addrs = append(addrs, a.Addr)
		}
	}
	if len(s.Endpoints) == 0 {
		for _, a := range s.Addresses {
			addrs = append(addrs, a.Addr)
		}
	}
	var err error
	if len(addrs) == 0 {
		err = errNoAddresses
	}
	o.watch.mu.Lock()
	o.watch.addrs, o.watch.lookupErr = addrs, err
	o.watch.mu.Unlock()
	return o.ClientConn.UpdateState(s)
}

func (o overhearing) ReportError(err error) {
	o.watch.mu.Lock()
	o.watch.lookupErr = err
	o.watch.mu.Unlock()
	o.ClientConn.ReportError(err)
}
