package e2e

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// attack counts the connections of one kind of attack on a port, and those that the
// server closed. Its methods each make one attack.
type attack struct {
	name           string
	opened, closed atomic.Int64
	// mayKeep is set if the server may keep the connections open, because an honest
	// caller's look the same.
	mayKeep bool
}

// closeWithin is how long a server may keep a connection without a request: its
// timeout is 5 s, and the machine may be busy.
const closeWithin = 15 * time.Second

// awaitClose waits up to closeWithin for the server to close a connection.
func (a *attack) awaitClose(conn net.Conn) {
	_ = conn.SetReadDeadline(time.Now().Add(closeWithin)) // cannot fail on an open connection
	if _, err := io.Copy(io.Discard, conn); !errors.Is(err, os.ErrDeadlineExceeded) {
		a.closed.Add(1)
	}
	_ = conn.Close()
}

func (a *attack) dial(ctx context.Context, addr string) net.Conn {
	conn, err := (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil
	}
	a.opened.Add(1)
	return conn
}

// halfOpen connects and sends nothing.
func (a *attack) halfOpen(ctx context.Context, addr string) {
	if conn := a.dial(ctx, addr); conn != nil {
		a.awaitClose(conn)
	}
}

// slowHeaders sends headers byte by byte.
func (a *attack) slowHeaders(ctx context.Context, addr string) {
	conn := a.dial(ctx, addr)
	if conn == nil {
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for _, b := range []byte("GET /api/data HTTP/1.1\r\nHost: tandem\r\nX-Slow: " + string(bytes.Repeat([]byte{'x'}, 4096))) {
			if _, err := conn.Write([]byte{b}); err != nil {
				return
			}
			time.Sleep(300 * time.Millisecond)
		}
	}()
	a.awaitClose(conn)
	<-done
}

// bigHeaders sends 1 MB of headers.
func (a *attack) bigHeaders(ctx context.Context, addr string) {
	conn := a.dial(ctx, addr)
	if conn == nil {
		return
	}
	go func() {
		_, _ = fmt.Fprintf(conn, "GET /api/data HTTP/1.1\r\nHost: tandem\r\nX-Big: %s\r\n\r\n", bytes.Repeat([]byte{'x'}, 1<<20)) // the server closes the connection meanwhile
	}()
	a.awaitClose(conn)
}

// garbage sends random bytes.
func (a *attack) garbage(ctx context.Context, addr string) {
	conn := a.dial(ctx, addr)
	if conn == nil {
		return
	}
	noise := make([]byte, 64<<10)
	_, _ = rand.Read(noise)
	go func() { _, _ = conn.Write(noise) }()
	a.awaitClose(conn)
}

// resets is the number of requests that rapidResets makes on one connection, in about
// five seconds.
const resets = 10_000

// rapidResets sends HTTP/2 requests and cancels each at once (CVE-2023-44487).
func (a *attack) rapidResets(ctx context.Context, addr string) {
	conn := a.dial(ctx, addr)
	if conn == nil {
		return
	}
	defer conn.Close() //nolint:errcheck // the connection may be broken
	go func() { _, _ = io.Copy(io.Discard, conn) }()
	_ = conn.SetWriteDeadline(time.Now().Add(closeWithin))
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		return
	}
	headers := grpcHeaders()
	framer := http2.NewFramer(conn, nil)
	if framer.WriteSettings() != nil {
		return
	}
	for id := uint32(1); id < 2*resets && ctx.Err() == nil; id += 2 {
		if id%20 == 1 { // limit the attack, which could otherwise use the whole machine
			time.Sleep(5 * time.Millisecond)
		}
		if framer.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: headers, EndHeaders: true}) != nil ||
			framer.WriteRSTStream(id, http2.ErrCodeCancel) != nil {
			break
		}
	}
	a.closed.Add(1) // by the server, or by conn.Close
}

// grpcHeaders returns the headers of a call of GetData. They are valid on every stream
// of a connection, because none refers to a header that was sent before.
func grpcHeaders() []byte {
	var block bytes.Buffer
	headers := hpack.NewEncoder(&block)
	for _, pair := range [][2]string{
		{":method", "POST"}, {":scheme", "http"}, {":path", "/data.v1.DataService/GetData"}, {":authority", serviceB},
		{"content-type", "application/grpc"}, {"te", "trailers"},
	} {
		_ = headers.WriteField(hpack.HeaderField{Name: pair[0], Value: pair[1]}) // writes to memory
	}
	return block.Bytes()
}

// idle opens an HTTP/2 connection and makes no call.
func (a *attack) idle(ctx context.Context, addr string) { a.halfMessages(ctx, addr, 0, 0) }

// halfStreams is how many calls halfMessages makes on one connection.
const halfStreams = 200

// bigHalves sends halves of messages of 1 MiB, far above the limit of 64 KiB.
func (a *attack) bigHalves(ctx context.Context, addr string) {
	a.halfMessages(ctx, addr, halfStreams, 1<<20)
}

// smallHalves sends halves of messages within the limit.
func (a *attack) smallHalves(ctx context.Context, addr string) {
	a.halfMessages(ctx, addr, halfStreams, 60<<10)
}

// halfMessages makes calls on one connection, each with a message whose last byte is
// not sent. It sends as much as the server's flow control allows, and keeps the
// connection until the server closes it or ctx ends.
func (a *attack) halfMessages(ctx context.Context, addr string, streams, size uint32) {
	conn := a.dial(ctx, addr)
	if conn == nil {
		return
	}
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	defer conn.Close() //nolint:errcheck // the connection may be broken
	if err := holdHalfMessages(conn, streams, size); err != nil && ctx.Err() == nil {
		a.closed.Add(1)
	}
}

// holdHalfMessages returns when the connection fails.
func holdHalfMessages(conn net.Conn, streams, size uint32) error {
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		return err
	}
	framer := http2.NewFramer(conn, conn)
	if err := framer.WriteSettings(); err != nil {
		return err
	}
	const initialWindow, maxFrame = 65535, 16384 // defaults of HTTP/2, in bytes
	unsent := map[uint32]int{}                   // bytes by stream
	window := map[uint32]int{0: initialWindow}   // bytes by stream; 0 is the connection
	perStream := initialWindow
	headers := grpcHeaders()
	prefix := binary.BigEndian.AppendUint32([]byte{0}, size)
	for i := range streams {
		id := 2*i + 1
		if err := framer.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: headers, EndHeaders: true}); err != nil {
			return err
		}
		if err := framer.WriteData(id, false, prefix); err != nil {
			return err
		}
		unsent[id], window[id] = int(size)-1, initialWindow-len(prefix)
		window[0] -= len(prefix)
	}
	noise := make([]byte, maxFrame)
	for {
		for id := range unsent {
			for n := min(unsent[id], window[id], window[0], maxFrame); n > 0; n = min(unsent[id], window[id], window[0], maxFrame) {
				if err := framer.WriteData(id, false, noise[:n]); err != nil {
					return err
				}
				unsent[id], window[id], window[0] = unsent[id]-n, window[id]-n, window[0]-n
			}
		}
		frame, err := framer.ReadFrame()
		if err != nil {
			return err
		}
		switch f := frame.(type) {
		case *http2.SettingsFrame:
			if f.IsAck() {
				break
			}
			if value, ok := f.Value(http2.SettingInitialWindowSize); ok {
				for id := range unsent {
					window[id] += int(value) - perStream
				}
				perStream = int(value)
			}
			err = framer.WriteSettingsAck()
		case *http2.PingFrame:
			if !f.IsAck() {
				err = framer.WritePing(true, f.Data)
			}
		case *http2.WindowUpdateFrame:
			window[f.StreamID] += int(f.Increment)
		case *http2.RSTStreamFrame:
			delete(unsent, f.StreamID)
		}
		if err != nil {
			return err
		}
	}
}
