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

// Hostile is a client that tries to exhaust or crash the server at Addr. Its
// connections come from the address From, as if from another pod, so that limits for
// each peer do not affect other callers.
type Hostile struct {
	From, Addr string
	// Method is the full name of a unary gRPC method, such as /pkg.Service/Method.
	Method string
	// Opened counts connections, and Sent the bytes of incomplete messages.
	Opened, Sent atomic.Int64
}

// HalfRequest sends an HTTP request without its last byte, and then waits until ctx
// ends or the server closes the connection.
func (h *Hostile) HalfRequest(ctx context.Context, size int) {
	conn, err := h.dial(ctx)
	if err != nil {
		return
	}
	defer conn.Close()                                          //nolint:errcheck // the connection may be broken
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })() // ends the Copy below
	head := fmt.Sprintf("POST /api/data HTTP/1.1\r\nHost: hostile\r\nContent-Length: %d\r\n\r\n", size)
	n, _ := io.WriteString(conn, head+strings.Repeat("x", size-1)) // the server may reject it
	h.Sent.Add(int64(n))
	_, _ = io.Copy(io.Discard, conn)
}

// HalfMessages opens one HTTP/2 connection with many calls, each of which sends a gRPC
// message of size bytes without its last byte, as far as flow control permits. It
// returns when ctx ends or the server closes the connection.
func (h *Hostile) HalfMessages(ctx context.Context, streams, size int) {
	conn, err := h.dial(ctx)
	if err != nil {
		return
	}
	defer conn.Close()                                          //nolint:errcheck // the connection may be broken
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })() // ends c.read and c.write
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		return
	}
	c := &halfSender{
		framer:        http2.NewFramer(conn, conn),
		changed:       make(chan struct{}, 1),
		initialWindow: defaultWindow,
		windows:       map[uint32]int{0: defaultWindow},
	}
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		c.read()
	}()
	c.write(h, streams, size)
	<-closed
}

// defaultWindow and frameSize are the flow-control window and the largest frame until
// the server's SETTINGS change them (RFC 9113, section 6.5.2).
const defaultWindow, frameSize = 65535, 16384

// halfSender sends the messages of HalfMessages on one connection.
type halfSender struct {
	framer  *http2.Framer
	changed chan struct{} // receives when a window has changed or the connection has ended

	mu            sync.Mutex
	initialWindow int            // of a new stream
	windows       map[uint32]int // bytes that may be sent, by stream; stream 0 is the connection
	ended         bool
}

// read updates the windows from the server's frames, until the connection ends.
func (c *halfSender) read() {
	for {
		frame, err := c.framer.ReadFrame()
		c.mu.Lock()
		switch f := frame.(type) {
		case *http2.WindowUpdateFrame:
			if _, open := c.windows[f.StreamID]; open {
				c.windows[f.StreamID] += int(f.Increment)
			}
		case *http2.SettingsFrame:
			if size, ok := f.Value(http2.SettingInitialWindowSize); ok {
				for id := range c.windows {
					if id != 0 {
						c.windows[id] += int(size) - c.initialWindow
					}
				}
				c.initialWindow = int(size)
			}
		case *http2.RSTStreamFrame:
			delete(c.windows, f.StreamID)
		}
		_, streamError := errors.AsType[http2.StreamError](err)
		c.ended = err != nil && !streamError
		ended := c.ended
		c.mu.Unlock()
		select {
		case c.changed <- struct{}{}:
		default:
		}
		if ended {
			return
		}
	}
}

// write opens the streams, and sends on each in turn as much as its window permits.
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
		c.windows[id] = c.initialWindow
		c.mu.Unlock()
		// A gRPC message starts with five bytes: a flag and the length.
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
		<-c.changed
		c.mu.Lock()
		ended := c.ended
		c.mu.Unlock()
		if ended {
			return
		}
	}
}

var zeros [frameSize]byte

// permitted returns how many of n bytes flow control permits, or -1 if the stream has
// ended.
func (c *halfSender) permitted(id uint32, n int) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	window, open := c.windows[id]
	if !open {
		return -1
	}
	return max(0, min(n, window, c.windows[0]))
}

// send sends p on a stream, and reports whether the connection is still usable.
func (c *halfSender) send(id uint32, p []byte) bool {
	c.mu.Lock()
	if _, open := c.windows[id]; open {
		c.windows[id] -= len(p)
	}
	c.windows[0] -= len(p)
	c.mu.Unlock()
	return c.framer.WriteData(id, false, p) == nil
}

// Idle opens n connections and keeps them open until ctx ends. Every second one sends
// hello first, so that a timeout for the first bytes does not close it.
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

// HelloHTTP and HelloGRPC are the first bytes of a client of each protocol.
var (
	HelloHTTP = "GET /livez HTTP/1.1\r\nHost: hostile\r\n\r\n"
	HelloGRPC = http2.ClientPreface + "\x00\x00\x00\x04\x00\x00\x00\x00\x00" // an empty SETTINGS frame
)

// OddHTTP sends malformed and excessive HTTP requests until ctx ends, each on a new
// connection.
func (h *Hostile) OddHTTP(ctx context.Context) {
	long, huge := strings.Repeat("x", 40<<10), strings.Repeat("x", 1<<20)
	const end = "\r\n\r\n"
	h.cycle(ctx, []func(net.Conn){
		send("GET /api/data HTTP/1.1\r\nHost: " + long + end),
		send(long + " /api/data HTTP/1.1\r\nHost: hostile" + end),
		send("GET /api/data HTTP/1.1\r\nHost: hostile\r\nX-Big: " + huge + end),
		send("GET /" + huge + " HTTP/1.1\r\nHost: hostile" + end),
		send("GET /api/data HTTP/1.1\r\nHost: host\x00ile\r\nX-\x00: \x00" + end),
		send("GET /\x00 HTTP/1.1\r\nHost: hostile" + end),
		send(strings.Repeat("\x16\x03\x01\xff\x00", 10_000)),
		send(strings.Repeat(HelloHTTP, 100)), // responses that are not read
		sendAndReset("GET /api/data HTTP/1.1\r\nHost: hostile" + end),
	})
}

// OddGRPC sends malformed and excessive gRPC calls until ctx ends, each on a new
// connection.
func (h *Hostile) OddGRPC(ctx context.Context) {
	long, huge := strings.Repeat("x", 40<<10), strings.Repeat("x", 1<<20)
	h.cycle(ctx, []func(net.Conn){
		h.callWith(hpack.HeaderField{Name: ":authority", Value: long}),
		h.callWith(hpack.HeaderField{Name: ":method", Value: long}),
		h.callWith(hpack.HeaderField{Name: ":path", Value: "/" + long}),
		h.callWith(hpack.HeaderField{Name: "x-big", Value: huge}),
		h.callWith(hpack.HeaderField{Name: "x-\x00", Value: "\x00"}),
		h.callWith(hpack.HeaderField{Name: "grpc-timeout", Value: long}),
		send(strings.Repeat("\x16\x03\x01\xff\x00", 10_000)),
		send(HelloGRPC + strings.Repeat("\x00", 10_000)),
		send(HelloHTTP),
		h.rapidReset,
		sendAndReset(HelloGRPC),
	})
}

// cycle runs the attacks in turn until ctx ends, each on a new connection. It pauses
// between them, so that the test's other callers get CPU time.
func (h *Hostile) cycle(ctx context.Context, attacks []func(net.Conn)) {
	for i := 0; ctx.Err() == nil; i++ {
		conn, err := h.dial(ctx)
		if err == nil {
			_ = conn.SetDeadline(time.Now().Add(2 * time.Second)) // the server may have stopped reading
			attacks[i%len(attacks)](conn)
			_ = conn.Close()
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
		}
	}
}

// send sends text and reads the start of the response.
func send(text string) func(net.Conn) {
	return func(conn net.Conn) {
		_, _ = io.WriteString(conn, text) // the server may reject it half-way
		_ = conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		_, _ = conn.Read(make([]byte, 512))
	}
}

// sendAndReset sends text and makes conn.Close reset the connection.
func sendAndReset(text string) func(net.Conn) {
	return func(conn net.Conn) {
		_, _ = io.WriteString(conn, text)
		_ = conn.(*net.TCPConn).SetLinger(0)
	}
}

// callWith makes one gRPC call with a malformed or excessive header.
func (h *Hostile) callWith(header hpack.HeaderField) func(net.Conn) {
	var block bytes.Buffer
	encodeHeaders(hpack.NewEncoder(&block), h.Method, header)
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
	return send(text.String())
}

// rapidReset makes 1000 calls and cancels each at once (CVE-2023-44487).
func (h *Hostile) rapidReset(conn net.Conn) {
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

// encodeHeaders encodes the headers of a gRPC call. Those in more are added, or replace
// one of the same name.
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

func (h *Hostile) dial(ctx context.Context) (net.Conn, error) {
	d := net.Dialer{Timeout: 10 * time.Second, LocalAddr: &net.TCPAddr{IP: net.ParseIP(h.From)}}
	conn, err := d.DialContext(ctx, "tcp", h.Addr)
	if err == nil {
		h.Opened.Add(1)
	}
	return conn, err
}
