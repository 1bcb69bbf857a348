// Package lookup resolves a name for the clients, and keeps its addresses up to date.
// Once they are known, no call waits for DNS: they are refreshed in the background,
// by one lookup at a time, however many calls there are.
//
// While DNS does not respond, the addresses of the last successful lookup remain in
// use: a ClusterIP never changes, and pods' addresses change rarely. If DNS responds
// that the name does not exist, they are dropped after 5 s.
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
	// RefreshEvery is the age at which addresses are looked up again although no
	// call failed. Otherwise a client that started while one of three pods was ready
	// would not find the others. CoreDNS caches for 30 s by default, so a shorter
	// time would gain little.
	RefreshEvery = 10 * time.Second
	// retryEvery is the time between lookups after a failed one, or after Refresh, while
	// addresses are known.
	retryEvery = time.Second
	// missingEvery is the time between lookups while no address is known, and calls
	// wait for one.
	missingEvery = 100 * time.Millisecond
	// dropAfter is for how long DNS must respond that the name does not exist before
	// the addresses are dropped. CoreDNS starts after waiting 5 s for the API server,
	// even if it does not know all names yet.
	dropAfter = 5 * time.Second
)

// Name is a host name and a port. It is safe for concurrent use.
type Name struct {
	host, port string
	changed    func(addrs []string)

	mu      sync.Mutex
	addrs   []string      // of the last successful lookup, sorted
	err     error         // of the last lookup
	missing time.Time     // since when DNS has responded that the name does not exist
	due     time.Time     // earliest start of the next lookup
	refresh time.Time     // when Addresses starts the next lookup
	running chan struct{} // closed when the running lookup ends; nil if there is none
}

// New returns a Name that has not been looked up. If changed is not nil, it is called
// with the addresses (host:port) whenever they change. It must not call methods of
// the Name.
func New(host, port string, changed func(addrs []string)) *Name {
	return &Name{host: host, port: port, changed: changed, err: &call.Error{Class: call.DNS, Err: fmt.Errorf("lookup %s: no response yet", host)}}
}

// Known returns the addresses of the last successful lookup, and the error of the
// last lookup.
func (n *Name) Known() ([]string, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.addrs, n.err
}

// Current is like Known, but also starts a lookup if it is time for one. It does not
// wait for it.
func (n *Name) Current() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !time.Now().Before(n.refresh) {
		n.start()
	}
	return n.addrs
}

// Addresses returns the addresses. It waits for DNS only if none are known. The
// error is that of the lookup, of class call.DNS even if the deadline of ctx passed.
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

// Lookup waits until the next lookup may start, runs it, and returns its error. If
// ctx ends first, it returns ctx's error.
func (n *Name) Lookup(ctx context.Context) error {
	n.mu.Lock()
	wait := time.Until(n.due)
	n.mu.Unlock()
	// query waits, too, but this wait ends with ctx: a closed client must not start a lookup.
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

// Refresh is for callers that found an address failing. The next call of Addresses
// starts a lookup, about a second after the last one.
func (n *Name) Refresh() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.refresh = n.due
}

// start returns the channel of the running lookup. If there is none, it starts one,
// which waits until it is due. The caller has locked n.mu.
func (n *Name) start() (done <-chan struct{}) {
	if n.running == nil {
		n.running = make(chan struct{})
		go n.query(time.Until(n.due))
	}
	return n.running
}

// query waits, looks the name up, and records the outcome.
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
	n.record(addrs, err)
	if n.changed != nil && !slices.Equal(before, n.addrs) {
		n.changed(n.addrs)
	}
	close(n.running)
	n.running = nil
}

// record records the outcome of a lookup. The caller has locked n.mu.
func (n *Name) record(addrs []string, err error) {
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
	// Jitter: callers that lost a service at the same time do not query together.
	n.due = now.Add(Jitter(pause))
	n.refresh = n.due
	if err == nil {
		n.refresh = now.Add(Jitter(RefreshEvery))
	}
}

// Jitter returns a random duration between 0.5 and 1.5 times d.
func Jitter(d time.Duration) time.Duration { return d/2 + rand.N(d) }

// IsNotFound reports whether DNS responded that a name does not exist.
func IsNotFound(err error) bool {
	dns, ok := errors.AsType[*net.DNSError](err)
	return ok && dns.IsNotFound
}
