package connlimit

import (
	"net"
	"net/netip"
	"sync"
	"sync/atomic"

	"golang.org/x/net/http2"
)

const prefaceLen = len(http2.ClientPreface)

// conn is a connection that estimates the memory held for it.
type conn struct {
	// Conn must be an interface: grpc-go reads a *net.TCPConn through its file
	// descriptor instead of Read.
	net.Conn
	listener     *Listener
	ip           netip.Addr
	addr         *addr
	base         int64 // bytes held without any request
	held         atomic.Int64
	lastResponse atomic.Int64 // Listener.now when the server last sent a response, or when the connection opened
	served       atomic.Bool  // the server has sent a response

	mu         sync.Mutex // guards the rest and all changes of held
	closed     bool
	request    int // bytes of the request so far; HTTP/1.1 only
	in, out    scanner
	streams    map[uint32]int64 // bytes that each open stream holds; nil for HTTP/1.1
	lastStream uint32
}

func (c *conn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 {
		c.received(p[:n])
	}
	return n, err
}

func (c *conn) received(p []byte) {
	c.mu.Lock()
	if c.streams == nil {
		header := min(len(p), max(0, http1Header-c.request))
		c.request += len(p)
		c.hold(int64(http1Factor*header + dataFactor*(len(p)-header)))
	} else {
		c.in.scan(p, c.frameReceived)
	}
	tooMuch := c.held.Load() > c.listener.o.PerConn
	c.mu.Unlock()
	if tooMuch {
		c.evict()
	}
	c.listener.enforce()
}

func (c *conn) Write(p []byte) (int, error) {
	c.mu.Lock()
	if c.streams == nil {
		c.request = 0
		c.hold(c.base - c.held.Load())
		c.responded()
	} else {
		c.out.scan(p, c.frameSent)
	}
	c.mu.Unlock()
	return c.Conn.Write(p)
}

func (c *conn) responded() {
	c.lastResponse.Store(c.listener.now())
	c.served.Store(true)
}

// CloseWrite is for net/http, which uses it if the client may still be sending.
func (c *conn) CloseWrite() error {
	if tcp, ok := c.Conn.(*net.TCPConn); ok {
		return tcp.CloseWrite()
	}
	return nil
}

func (c *conn) Close() error {
	c.mu.Lock()
	if !c.closed {
		c.hold(-c.held.Load())
		c.closed = true
		c.listener.remove(c)
	}
	c.mu.Unlock()
	return c.Conn.Close()
}

func (c *conn) evict() {
	c.listener.evicted.Inc()
	_ = c.Close() // the server's next read fails
}

// hold adds n to the bytes held for the connection. The caller has locked c.mu.
func (c *conn) hold(n int64) {
	if c.closed {
		return
	}
	c.held.Add(n)
	c.addr.held.Add(n)
	c.listener.held.Add(n)
}

func (c *conn) frameReceived(f frame) {
	held, open := c.streams[f.stream]
	var cost int64
	switch f.kind {
	case http2.FrameHeaders:
		cost = min(headerFactor*int64(f.length), maxHeaders)
		if !open && f.stream > c.lastStream {
			c.lastStream, open = f.stream, true
			cost += streamCost
		}
	case http2.FrameContinuation:
		cost = min(headerFactor*int64(f.length), maxHeaders)
	case http2.FrameData:
		cost = dataFactor*int64(f.length) + frameCost
	case http2.FrameRSTStream:
		// The handler may still run for a moment. grpc-go runs at most as many handlers
		// for a connection as it permits streams.
		c.end(f.stream)
		return
	}
	if open && cost > 0 {
		c.streams[f.stream] = held + cost
		c.hold(cost)
	}
}

func (c *conn) frameSent(f frame) {
	ends := f.flags.Has(http2.FlagHeadersEndStream)
	switch f.kind {
	case http2.FrameHeaders:
	case http2.FrameData:
		c.responded()
	case http2.FrameRSTStream:
		ends = true
	default:
		return
	}
	if ends {
		c.end(f.stream)
		c.responded()
	}
}

func (c *conn) end(stream uint32) {
	if held, open := c.streams[stream]; open {
		delete(c.streams, stream)
		c.hold(-held)
	}
}

type frame struct {
	kind   http2.FrameType
	flags  http2.Flags
	stream uint32
	length int
}

// scanner finds HTTP/2 frames in bytes that arrive in pieces of any size.
type scanner struct {
	skip   int // bytes of the payload or preface that have not arrived yet
	header [9]byte
	have   int // bytes of header that have arrived
}

func (s *scanner) scan(p []byte, found func(frame)) {
	for len(p) > 0 {
		if s.skip > 0 {
			n := min(s.skip, len(p))
			s.skip, p = s.skip-n, p[n:]
			continue
		}
		n := copy(s.header[s.have:], p)
		s.have, p = s.have+n, p[n:]
		if s.have < len(s.header) {
			return
		}
		h := s.header
		f := frame{
			length: int(h[0])<<16 | int(h[1])<<8 | int(h[2]),
			kind:   http2.FrameType(h[3]),
			flags:  http2.Flags(h[4]),
			stream: (uint32(h[5])<<24 | uint32(h[6])<<16 | uint32(h[7])<<8 | uint32(h[8])) & (1<<31 - 1),
		}
		s.have, s.skip = 0, f.length
		found(f)
	}
}
