// Package connlimit limits the memory that the connections of a server hold for
// requests that are incomplete, or have no response yet.
//
// net/http and grpc-go limit each message and each connection, but not the number of
// connections: a client that opens many, or sends many incomplete messages, could
// use all memory. A Listener of this package estimates what each connection holds
// and, when all of them together exceed a budget, closes (evicts) the worst one. New
// connections are never refused: a client that connects during an attack is served.
//
// The worst connection is the one with the largest product of
//
//   - the bytes that it holds,
//   - the square of the bytes that all connections from its address hold, and
//   - the time since the server last sent a response on it.
//
// So large requests, many clients behind one address (NAT, a proxy) and idle
// connections are all permitted while memory suffices; the product only decides the
// order of eviction. A connection goes last, whatever it holds, if the server
// responded on it within the last second, or if it opened within the last 100 ms.
//
// What a connection holds is estimated from the bytes on the wire, without support
// by the server. For HTTP/2 these are the frames in both directions: a stream holds
// memory from its HEADERS frame until the server ends it or the client resets it. For
// HTTP/1.1 these are the bytes received since the last response.
//
// Do not use it where clients upload in long streams: what a stream has sent counts
// until the server ends the stream, even if it was processed.
package connlimit

import (
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Estimated memory in bytes. The figures were measured (see the memory tests of
// packages httpserver and grpcserver) and rounded up.
const (
	// http1Conn is an HTTP/1.1 connection: its buffers and its goroutine.
	http1Conn = 16 << 10
	// http1Factor is the memory for a byte of a request: a header line of 5 bytes
	// becomes about 130 bytes of map and strings. The bytes after the first
	// http1Header count as a body, with dataFactor.
	http1Factor = 24
	http1Header = 24 << 10
	// http2Conn is a gRPC connection: its buffers and its goroutines.
	http2Conn = 40 << 10
	// streamCost is a stream: its goroutine, its contexts and its metadata.
	streamCost = 12 << 10
	// headerFactor is the memory for a byte of a header block: compressed, one byte
	// can be a field, which takes about 100 bytes of map and strings. A server that
	// accepts lists of 8 KiB accepts 256 fields, so a list takes at most maxHeaders.
	headerFactor = 64
	maxHeaders   = 32 << 10
	// dataFactor is the memory for a byte of a message: buffers are powers of two.
	dataFactor = 2
	// frameCost is the memory for a DATA frame of any size: grpc-go keeps each frame
	// in a buffer of its own until the message is complete.
	frameCost = 128
)

const (
	// servedRecently is how long after a response a connection is evicted last, and
	// openedRecently how long after it opened. The second is short because it also
	// protects the connections of a flood.
	servedRecently, openedRecently = time.Second, 100 * time.Millisecond
	// evictLast is a factor that makes a score smaller than every score without it.
	evictLast = 1e-30
)

// Options of a Listener.
type Options struct {
	// Name is the value of the metrics' label server.
	Name string
	// HTTP2 is true for HTTP/2 without TLS, and false for HTTP/1.1.
	HTTP2 bool
	// Budget is how many bytes all connections may hold together, and PerConn how
	// many one of them may hold.
	Budget, PerConn int64
	Metrics         prometheus.Registerer
}

// Listener accepts connections, and evicts the worst one while they hold more than
// the budget.
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

// New returns a Listener that accepts from inner, and registers its metrics.
func New(inner net.Listener, o Options) *Listener {
	l := &Listener{
		Listener: inner, o: o, start: time.Now(), conns: map[*conn]struct{}{}, addrs: map[netip.Addr]*addr{},
	}
	labels := prometheus.Labels{"server": o.Name}
	l.evicted = prometheus.NewCounter(prometheus.CounterOpts{
		Name:        "server_connections_evicted_total",
		Help:        "Connections closed because they held too much memory for requests that were not complete.",
		ConstLabels: labels,
	})
	o.Metrics.MustRegister(l.evicted,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "server_connections", Help: "Open connections.", ConstLabels: labels,
		}, func() float64 {
			l.mu.Lock()
			defer l.mu.Unlock()
			return float64(len(l.conns))
		}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "server_connections_held_bytes", Help: "Memory that open connections hold, as estimated.", ConstLabels: labels,
		}, func() float64 { return float64(l.held.Load()) }),
	)
	return l
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

// now returns the time since start, as an integer for atomic variables.
func (l *Listener) now() int64 { return int64(time.Since(l.start)) }

// enforce evicts connections until the others are within the budget.
func (l *Listener) enforce() {
	for l.held.Load() > l.o.Budget {
		c := l.worst()
		if c == nil {
			return
		}
		c.evict()
	}
}

// worst returns the connection to evict, or nil if there is none.
func (l *Listener) worst() *conn {
	l.mu.Lock()
	defer l.mu.Unlock()
	var worst *conn
	highest, now := -1.0, l.now()
	for c := range l.conns {
		idle := time.Duration(now - c.lastResponse.Load())
		// Plus a millisecond: directly after a response, the other two factors
		// still count.
		byAddr := float64(c.addr.held.Load())
		score := float64(c.held.Load()) * byAddr * byAddr * float64(idle+time.Millisecond)
		if idle < openedRecently || c.served.Load() && idle < servedRecently {
			score *= evictLast
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
