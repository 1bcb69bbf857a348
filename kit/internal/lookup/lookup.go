// Package lookup keeps the addresses of one name for the clients. A call does
// not wait for DNS once the addresses are known: they are refreshed beside the
// calls, by one lookup at a time, however many calls there are.
//
// While DNS does not respond, the addresses of the last successful lookup remain
// in use: a ClusterIP never changes, and a pod's address rarely has. If DNS says
// that the name does not exist, they are dropped after a few seconds.
package lookup

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"time"

	"example.com/tandem/kit/call"
	"example.com/tandem/kit/retry"
)

const (
	// timeout of one lookup.
	timeout = 3 * time.Second
	// RefreshEvery is the age at which addresses are looked up anew although
	// nothing failed. Otherwise a client that started while one of three pods
	// was ready would not learn of the others. CoreDNS caches for 30 s by
	// default, so more often would gain little.
	RefreshEvery = 10 * time.Second
	// retryEvery is the pause after a failed lookup of a name that has
	// addresses, and after a lookup that was followed by Refresh.
	retryEvery = time.Second
	// missingEvery is the pause while no address is known, and calls wait.
	missingEvery = 100 * time.Millisecond
	// dropAfter is for how long DNS must say that the name does not exist before
	// known addresses are dropped. CoreDNS starts to respond when it has waited
	// 5 s for the API server, whether it knows all names by then or not.
	dropAfter = 5 * time.Second
)

// Name is a host name and a port. It is safe for concurrent use.
type Name struct {
	host, port string
	changed    func(addrs []string)

	mu      sync.Mutex
	addrs   []string // of the last successful lookup, sorted
	err     error    // of the last lookup
	missing time.Time
	due     time.Time     // when the next lookup may start
	refresh time.Time     // when it starts without a failure
	running chan struct{} // closed when the lookup under way has ended; nil if none is
}

// New returns a Name that has not been looked up. The function changed is called
// with the addresses, as host:port, whenever they have changed; it may be nil. It
// must not call methods of the Name.
func New(host, port string, changed func(addrs []string)) *Name {
	return &Name{host: host, port: port, changed: changed, err: &call.Error{Class: call.DNS, Err: fmt.Errorf("lookup %s: no response yet", host)}}
}

// Known returns the addresses and the error of the last lookup. There may be
// both: the error is then newer.
func (n *Name) Known() ([]string, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.addrs, n.err
}

// Addresses returns the addresses. It waits for DNS only if none are known. The
// error is that of the lookup; its class is call.DNS if ctx's deadline passed.
func (n *Name) Addresses(ctx context.Context) ([]string, error) {
	n.mu.Lock()
	addrs, now := n.addrs, time.Now()
	if len(addrs) > 0 && now.Before(n.refresh) {
		n.mu.Unlock()
		return addrs, nil
	}
	done := n.start()
	n.mu.Unlock()
	if len(addrs) > 0 {
		return addrs, nil
	}
	select {
	case <-done:
	case <-ctx.Done():
		class := call.Canceled
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			class = call.DNS
		}
		return nil, &call.Error{Class: class, Err: fmt.Errorf("lookup %s: no response: %w", n.host, context.Cause(ctx))}
	}
	addrs, err := n.Known()
	if len(addrs) > 0 {
		return addrs, nil
	}
	return nil, err
}

// Lookup looks the name up as soon as the next lookup may start, and returns its
// error. It returns the error of ctx if that ends first.
func (n *Name) Lookup(ctx context.Context) error {
	n.mu.Lock()
	wait := time.Until(n.due)
	n.mu.Unlock()
	if !retry.Sleep(ctx, wait) {
		return ctx.Err()
	}
	n.mu.Lock()
	done := n.start()
	n.mu.Unlock()
	select {
	case <-done:
		_, err := n.Known()
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Refresh makes a lookup due, about a second after the last: an address has
// failed. The next call of Addresses starts it.
func (n *Name) Refresh() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.refresh = n.due
}

// start returns the channel of the lookup under way. If there is none, it starts
// one, which waits until it is due. n.mu is held.
func (n *Name) start() (done <-chan struct{}) {
	if n.running == nil {
		n.running = make(chan struct{})
		go n.query(time.Until(n.due))
	}
	return n.running
}

func (n *Name) query(wait time.Duration) {
	time.Sleep(wait)
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	hosts, err := net.DefaultResolver.LookupHost(ctx, n.host)
	addrs := make([]string, len(hosts))
	for i, host := range hosts {
		addrs[i] = net.JoinHostPort(host, n.port)
	}
	slices.Sort(addrs)
	addrs = slices.Compact(addrs)

	n.mu.Lock()
	defer n.mu.Unlock()
	before := n.addrs
	n.note(addrs, err)
	if n.changed != nil && !slices.Equal(before, n.addrs) {
		n.changed(n.addrs)
	}
	close(n.running)
	n.running = nil
}

// note records the outcome of a lookup; n.mu is held.
func (n *Name) note(addrs []string, err error) {
	now := time.Now()
	n.err = err
	switch {
	case err == nil:
		n.addrs, n.missing = addrs, time.Time{}
	case !IsNotFound(err):
		n.missing = time.Time{}
	case n.missing.IsZero():
		n.missing = now
	case now.Sub(n.missing) > dropAfter:
		n.addrs = nil
	}
	pause := retryEvery
	if len(n.addrs) == 0 {
		pause = missingEvery
	}
	// The jitter keeps callers that lost a service together from asking together.
	n.due = now.Add(Jitter(pause))
	n.refresh = n.due
	if err == nil {
		n.refresh = now.Add(Jitter(RefreshEvery))
	}
}

// Jitter returns a random time from half of d to one and a half of d.
func Jitter(d time.Duration) time.Duration { return d/2 + rand.N(d) }

// IsNotFound reports whether DNS responded that a name does not exist.
func IsNotFound(err error) bool {
	dns, ok := errors.AsType[*net.DNSError](err)
	return ok && dns.IsNotFound
}
