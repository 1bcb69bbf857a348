package httpclient

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"math/rand/v2"
	"net"
	"net/url"
	"slices"
	"sync"
	"time"

	"example.com/tandem/kit/call"
)

const (
	// connectTimeout of one address. A dead one must leave time for another.
	connectTimeout = time.Second
	tcpKeepAlive   = 15 * time.Second
	// shunned is how long an address that does not answer at all is tried
	// last. It has the fewest connections of all, so that otherwise each new
	// connection would wait for it first, for as long as DNS names it.
	shunned = 10 * time.Second
)

// dialer connects to the address, of those that a name stands for, to which it
// has the fewest connections. Behind a ClusterIP there is only one address,
// and kube-proxy chooses the pod; behind a headless Service, in Compose and at
// home, a plain net.Dialer would prefer whatever DNS names first.
type dialer struct {
	net.Dialer

	mu     sync.Mutex
	open   map[string]int       // connections by address
	failed map[string]time.Time // when an address could last not be connected to
	names  map[string][]string  // addresses by name, as last resolved
}

func newDialer() *dialer {
	return &dialer{
		Dialer: net.Dialer{Timeout: connectTimeout, KeepAlive: tcpKeepAlive},
		open:   map[string]int{},
		failed: map[string]time.Time{},
		names:  map[string][]string{},
	}
}

func (d *dialer) dial(ctx context.Context, network, hostport string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(hostport)
	if err != nil {
		return nil, err
	}
	hosts, err := net.DefaultResolver.LookupHost(ctx, host)
	if err != nil {
		d.resolved(hostport, nil)
		return nil, err
	}
	addrs := make([]string, len(hosts))
	for i, h := range hosts {
		addrs[i] = net.JoinHostPort(h, port)
	}
	d.resolved(hostport, addrs)

	var failures []error
	for _, addr := range d.fewestFirst(addrs) {
		d.count(addr, +1) // before it is open, so that dials side by side spread too
		conn, err := d.DialContext(ctx, network, addr)
		if err == nil {
			return &counted{Conn: conn, closed: sync.OnceFunc(func() { d.count(addr, -1) })}, nil
		}
		d.count(addr, -1)
		failures = append(failures, err)
		if ctx.Err() != nil {
			break
		}
		if call.ClassOf(err) != call.Refused { // which takes no time, and may be over any moment
			d.shun(addr)
		}
	}
	return nil, errors.Join(failures...)
}

// fewestFirst sorts addresses by their connections, those with equally many by
// chance, and those that are shunned last.
func (d *dialer) fewestFirst(addrs []string) []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := slices.Clone(addrs)
	rand.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	slices.SortStableFunc(out, func(a, b string) int { return cmp.Compare(d.open[a], d.open[b]) })
	maps.DeleteFunc(d.failed, func(_ string, at time.Time) bool { return time.Since(at) > shunned })
	slices.SortStableFunc(out, func(a, b string) int { return d.failed[a].Compare(d.failed[b]) })
	return out
}

func (d *dialer) shun(addr string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.failed[addr] = time.Now()
}

func (d *dialer) count(addr string, by int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.open[addr] += by; d.open[addr] == 0 {
		delete(d.open, addr) // pods come and go for as long as we run
	}
}

func (d *dialer) resolved(hostport string, addrs []string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.names[hostport] = addrs
}

// addresses that hostport stood for when a connection was last opened.
func (d *dialer) addresses(hostport string) []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.names[hostport]
}

// counted is a connection that is counted until it is closed.
type counted struct {
	net.Conn
	closed func()
}

func (c *counted) Close() error {
	c.closed()
	return c.Conn.Close()
}

// hostPort is what net/http dials for a URL.
func hostPort(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	return net.JoinHostPort(u.Hostname(), port)
}
