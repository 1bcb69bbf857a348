package grpcclient

import (
	"context"
	"errors"
	"net"
	"sync"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"example.com/tandem/kit/call"
)

// watcher notes how a connection's name was last resolved and dialled. gRPC
// folds both into the text of an UNAVAILABLE; callers want to tell them apart.
type watcher struct {
	mu        sync.Mutex
	addrs     []string
	lookupErr error
	dialErr   error
}

// resolved notes a lookup. One that fails leaves the addresses of the last, as
// it leaves gRPC's connections to them.
func (w *watcher) resolved(addrs []string, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.lookupErr = err; err == nil {
		w.addrs = addrs
	}
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
	if !errors.Is(err, context.Canceled) { // by gRPC, to which the address is of no more use
		w.mu.Lock()
		defer w.mu.Unlock()
		w.dialErr = err
	}
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
	class := call.ClassOfCode(code)
	if !reached && (code == codes.Unavailable || code == codes.DeadlineExceeded) {
		switch {
		// Pods that are all gone leave neither a name nor anyone at its old addresses.
		case w.lookupErr != nil && (len(w.addrs) == 0 || call.ClassOf(w.dialErr) != call.OK):
			class = call.DNS
			err = status.Error(code, w.lookupErr.Error())
		case code == codes.Unavailable && w.dialErr != nil:
			class = call.ClassOf(w.dialErr)
		}
	}
	return &call.Error{Class: class, Err: err}
}
