// Package connlimit bounds the memory that the connections of a server hold for
// requests that are not complete, or have no response yet.
//
// The limits of net/http and grpc-go are for each message and each connection,
// and connections are without limit: a client that opens many, or sends many
// half messages, takes as much memory as it likes. A Listener of this package
// estimates what each connection holds and, when all of them together exceed a
// budget, closes the worst one. No connection is ever refused for being late:
// a caller that connects during an attack is served, and an old connection that
// does nothing but hold memory makes room for it.
//
// The worst connection is the one with the largest product of
//
//   - the bytes that it holds,
//   - the square of the bytes that all connections from its address hold, and
//   - the time since the server last sent a response on it.
//
// So neither large requests nor many callers behind one address (NAT, a proxy)
// nor idle connections are refused as such. Each of the three only decides who
// goes first when memory is short. A connection on which the server has just
// responded goes last, whatever it holds: its calls are being served. So does one
// that has just opened, and has had no time for a call.
//
// What a connection holds is estimated from the bytes on the wire, without a
// hook in the server: for HTTP/2 by the frames in both directions (a stream
// holds memory from its HEADERS until the server ends it), for HTTP/1.1 by the
// bytes received since the last response.
//
// Do not use it where clients send long streams: what a stream has sent counts
// until the server ends the stream, whether it was consumed or not.
package connlimit

import (
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// What things cost, in bytes. The figures are measured (see the tests of the
// servers) and rounded up.
const (
	// http1Conn is an HTTP/1.1 connection: its buffers and its goroutine.
	http1Conn = 16 << 10
	// http1Factor is what a byte of a request costs until the response. A header
	// line of 5 bytes becomes some 130 bytes of map and strings. What follows
	// http1Header bytes is a body, which costs dataFactor.
	http1Factor = 24
	http1Header = 24 << 10
	// http2Conn is a gRPC connection: its buffers and its goroutines.
	http2Conn = 40 << 10
	// streamCost is a stream: its goroutine, its contexts and its metadata.
	streamCost = 12 << 10
	// headerFactor is what a byte of a header block costs: compressed, it may stand
	// for a field, which takes some 100 bytes of map and strings. A server that
	// takes lists of 8 KiB takes 256 fields, so that a list costs maxHeaders at most.
	headerFactor = 64
	maxHeaders   = 32 << 10
	// dataFactor is what a byte of a message costs: buffers come in powers of two.
	dataFactor = 2
	// frameCost is what a DATA frame costs, be it of one byte only: grpc-go keeps
	// each frame in a buffer of its own until the message is complete.
	frameCost = 128
)

const (
	// servedRecently is how long after a response a connection goes last, and
	// openedRecently how long after it opened. The second is short, as a flood of
	// connections has only that.
	servedRecently, openedRecently = time.Second, 100 * time.Millisecond
	// lastToGo makes any score smaller than those of connections without it.
	lastToGo = 1e-30
)

// Options of a Listener.
type Options struct {
	// Name is the value of the metrics' label server.
	Name string
	// HTTP2 says that connections carry HTTP/2 without TLS, else HTTP/1.1.
	HTTP2 bool
	// Budget is how many bytes all connections may hold, and PerConn one of them.
	Budget, PerConn int64
	Metrics         prometheus.Registerer
}

// Listener accepts connections and closes the worst of them when they hold more
// than the budget.
type Listener struct {
	net.Listener
	o       Options
	start   time.Time
	held    atomic.Int64
	evicted prometheus.Counter

	mu    sync.Mutex
	conns map[*conn]struct{}
	addrs map[netip.Addr]*addr
}

// addr is the state of all connections from one IP address.
type addr struct {
	held  atomic.Int64
	conns int // guarded by Listener.mu
}

// New returns a Listener that accepts from l, and registers its metrics.
func New(l net.Listener, o Options) *Listener {
	limited := &Listener{
		Listener: l, o: o, start: time.Now(), conns: map[*conn]struct{}{}, addrs: map[netip.Addr]*addr{},
	}
	labels := prometheus.Labels{"server": o.Name}
	limited.evicted = prometheus.NewCounter(prometheus.CounterOpts{
		Name:        "server_connections_evicted_total",
		Help:        "Connections closed because they held too much memory for requests that were not complete.",
		ConstLabels: labels,
	})
	o.Metrics.MustRegister(limited.evicted,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "server_connections", Help: "Open connections.", ConstLabels: labels,
		}, func() float64 {
			limited.mu.Lock()
			defer limited.mu.Unlock()
			return float64(len(limited.conns))
		}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "server_connections_held_bytes", Help: "Memory that open connections hold, as estimated.", ConstLabels: labels,
		}, func() float64 { return float64(limited.held.Load()) }),
	)
	return limited
}

// Accept returns the next connection.
func (l *Listener) Accept() (net.Conn, error) {
	raw, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	c := &conn{Conn: raw, listener: l, base: http1Conn}
	if l.o.HTTP2 {
		c.base, c.streams = http2Conn, map[uint32]int64{}
		c.in.skip = prefaceLen
	}
	c.lastResponse.Store(l.now())
	if from, err := netip.ParseAddrPort(raw.RemoteAddr().String()); err == nil {
		c.ip = from.Addr()
	}
	l.mu.Lock()
	c.addr = l.addrs[c.ip]
	if c.addr == nil {
		c.addr = &addr{}
		l.addrs[c.ip] = c.addr
	}
	c.addr.conns++
	l.conns[c] = struct{}{}
	l.mu.Unlock()

	c.mu.Lock()
	c.hold(c.base)
	c.mu.Unlock()
	l.enforce()
	return c, nil
}

// now is the time since start: an atomic can hold it.
func (l *Listener) now() int64 { return int64(time.Since(l.start)) }

// enforce closes connections until the rest is within the budget.
func (l *Listener) enforce() {
	for l.held.Load() > l.o.Budget {
		c := l.worst()
		if c == nil {
			return
		}
		c.evict()
	}
}

func (l *Listener) worst() *conn {
	l.mu.Lock()
	defer l.mu.Unlock()
	var worst *conn
	highest, now := -1.0, l.now()
	for c := range l.conns {
		idle := time.Duration(now - c.lastResponse.Load())
		// A millisecond more, so that a connection which was answered just now
		// is still judged by what it holds.
		byAddr := float64(c.addr.held.Load())
		score := float64(c.held.Load()) * byAddr * byAddr * float64(idle+time.Millisecond)
		if idle < openedRecently || c.served.Load() && idle < servedRecently {
			score *= lastToGo
		}
		if score > highest {
			worst, highest = c, score
		}
	}
	return worst
}

func (l *Listener) remove(c *conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.conns, c)
	if c.addr.conns--; c.addr.conns == 0 {
		delete(l.addrs, c.ip)
	}
}
