package httpclient

import (
	"cmp"
	"context"
	"crypto/tls"
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
	// lookupPatience is how long DNS is waited for where the addresses of a
	// name are known from before: far more than CoreDNS takes and, with
	// connectTimeout, less than the second that is half of the usual deadline.
	lookupPatience = 300 * time.Millisecond
	// connectTimeout of one try. A dead pod must leave time for another; a SYN
	// that is lost is repeated only after a second in any case.
	connectTimeout = 400 * time.Millisecond
	// briefTimeout is that of an address that did not answer lately. Those
	// behind it who are alive answer within milliseconds.
	briefTimeout = 200 * time.Millisecond
	tcpKeepAlive = 15 * time.Second
	// doubt is for how long DNS may say that there is no such name before a
	// name that there was is forgotten. CoreDNS begins to answer once it has
	// waited 5 s for the API server, whether or not it knows all names by then.
	doubt = 5 * time.Second
	// shunned is how long an address that does not answer, or whose connection
	// was left, is tried last. It has the fewest connections of all, so that
	// otherwise each new connection would go to it first, for as long as DNS
	// names it.
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
	failed map[string]time.Time // when an address was last shunned
	names  map[string]known
}

// known is what is known of a name.
type known struct {
	addrs   []string  // as last resolved
	missing time.Time // since when DNS has said that there is no such name
}

func newDialer() *dialer {
	return &dialer{
		Dialer: net.Dialer{KeepAlive: tcpKeepAlive},
		open:   map[string]int{},
		failed: map[string]time.Time{},
		names:  map[string]known{},
	}
}

func (d *dialer) dial(ctx context.Context, network, hostport string) (net.Conn, error) {
	addrs, err := d.lookup(ctx, hostport)
	if len(addrs) == 0 {
		return nil, err
	}
	addrs = d.fewestFirst(addrs)
	if len(addrs) == 1 {
		addrs = append(addrs, addrs[0]) // a virtual IP sends the second try to another pod
	}
	failures := []error{err} // if the addresses of before are of no use, that is why
	for _, addr := range addrs {
		d.count(addr, +1) // before it is open, so that dials side by side spread too
		conn, err := d.connect(ctx, network, addr)
		if err == nil {
			return &counted{
				TCPConn: conn.(*net.TCPConn),
				closed:  sync.OnceFunc(func() { d.count(addr, -1) }),
				shun:    func() { d.shun(addr) },
			}, nil
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

// connect tries an address once.
func (d *dialer) connect(ctx context.Context, network, addr string) (net.Conn, error) {
	once := d.Dialer
	once.Timeout = connectTimeout
	if d.isShunned(addr) {
		once.Timeout = briefTimeout
	}
	return once.DialContext(ctx, network, addr)
}

// lookup returns the addresses of a name. While DNS is in trouble those are the
// ones that it had before, with the error: a ClusterIP does not change, and a
// pod's address mostly has not. A name that is gone is another matter.
func (d *dialer) lookup(ctx context.Context, hostport string) ([]string, error) {
	host, port, err := net.SplitHostPort(hostport)
	if err != nil {
		return nil, err
	}
	before := d.addresses(hostport)
	if before != nil {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, lookupPatience)
		defer cancel()
	}
	hosts, err := net.DefaultResolver.LookupHost(ctx, host)
	switch {
	case err == nil:
		addrs := make([]string, len(hosts))
		for i, h := range hosts {
			addrs[i] = net.JoinHostPort(h, port)
		}
		d.resolved(hostport, addrs)
		return addrs, nil
	case notFound(err) && d.isGone(hostport):
		d.resolved(hostport, nil)
		return nil, err
	default:
		return before, err
	}
}

// isGone reports whether DNS has said for long enough that there is no such name.
func (d *dialer) isGone(hostport string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	name, ok := d.names[hostport]
	if ok && name.missing.IsZero() {
		name.missing = time.Now()
		d.names[hostport] = name
	}
	return !ok || time.Since(name.missing) > doubt
}

// notFound reports whether DNS said that a name has no address.
func notFound(err error) bool {
	dns, ok := errors.AsType[*net.DNSError](err)
	return ok && dns.IsNotFound
}

// fewestFirst sorts addresses by their connections, those with equally many by
// chance, and those that are shunned last.
func (d *dialer) fewestFirst(addrs []string) []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := slices.Clone(addrs)
	rand.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	slices.SortStableFunc(out, func(a, b string) int { return cmp.Compare(d.open[a], d.open[b]) })
	maps.DeleteFunc(d.failed, func(_ string, at time.Time) bool { return time.Since(at) > shunned }) // pods come and go
	slices.SortStableFunc(out, func(a, b string) int { return d.failed[a].Compare(d.failed[b]) })
	return out
}

func (d *dialer) shun(addr string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.failed[addr] = time.Now()
}

func (d *dialer) isShunned(addr string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	at, ok := d.failed[addr]
	return ok && time.Since(at) <= shunned
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
	if d.names[hostport] = (known{addrs: addrs}); addrs == nil {
		delete(d.names, hostport)
	}
}

// addresses that hostport stood for when DNS last said so.
func (d *dialer) addresses(hostport string) []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.names[hostport].addrs
}

// counted is a connection that is counted until it is closed.
type counted struct {
	*net.TCPConn
	closed func()
	shun   func() // its address

	mu   sync.Mutex
	uses int  // by requests that go on: 2 while net/http hands it from one to the next
	left bool // no request is to be written to it any more
}

func (c *counted) Close() error {
	c.closed()
	return c.TCPConn.Close()
}

// use of a connection by one request, from before it is written.
type use struct {
	conn    *counted // nil if there was none
	refused bool     // nothing was written
}

// useOf begins a use. A connection that was left refuses it, unless the request
// before has yet to take its answer, which net/http would throw away with it.
func useOf(conn net.Conn) use {
	if over, ok := conn.(*tls.Conn); ok {
		conn = over.NetConn()
	}
	c := conn.(*counted) // the dialer makes no others
	c.mu.Lock()
	defer c.mu.Unlock()
	c.uses++
	u := use{c, c.left && c.uses == 1}
	if u.refused {
		_ = c.Close() // it may be closed
	}
	return u
}

// end ends a use, and leaves the connection if the peer failed: behind a
// ClusterIP a connection is a pod, and net/http uses the last one first, so
// that a retry would meet the same pod.
func (u use) end(failed bool) {
	if u.conn == nil {
		return
	}
	u.conn.mu.Lock()
	defer u.conn.mu.Unlock()
	u.conn.uses--
	if failed {
		u.conn.left = true
		u.conn.shun()
		_ = u.conn.SetLinger(0) // no TIME_WAIT: an outage at a port a call would use them all up
	}
	if u.conn.left && u.conn.uses == 0 {
		_ = u.conn.Close() // it may be closed
	}
}

// hostPort is what net/http dials for a URL.
func hostPort(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	return net.JoinHostPort(u.Hostname(), port)
}
