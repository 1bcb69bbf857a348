package grpcserver_test

import (
	"bytes"
	"context"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"example.com/tandem/kit/grpcserver"
	"example.com/tandem/kit/internal/echo"
	"example.com/tandem/kit/kittest"
)

// client is one that speaks HTTP/2 by hand.
type client struct {
	net.Conn
	*http2.Framer
	t      *testing.T
	stream uint32
}

// connect opens a connection and sends the first bytes of it.
func connect(t *testing.T, s *server, first string) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", s.Addr().String())
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() }) // it may be closed
	_, err = io.WriteString(conn, first)
	require.NoError(t, err)
	return conn
}

func newClient(t *testing.T, s *server) *client {
	t.Helper()
	conn := connect(t, s, http2.ClientPreface)
	c := &client{Conn: conn, Framer: http2.NewFramer(conn, conn), t: t}
	require.NoError(t, c.WriteSettings())
	return c
}

// call makes a call of Say, with more headers.
func (c *client) call(text string, more ...hpack.HeaderField) error {
	c.t.Helper()
	if err := c.open(more...); err != nil {
		return err
	}
	message, err := proto.Marshal(wrapperspb.String(text))
	require.NoError(c.t, err)
	return c.WriteData(c.stream, true, append([]byte{0, 0, 0, 0, byte(len(message))}, message...))
}

// open opens a stream for a call of Say, with more headers.
func (c *client) open(more ...hpack.HeaderField) error {
	c.t.Helper()
	c.stream = max(c.stream+2, 1) | 1
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	for _, f := range append([]hpack.HeaderField{
		{Name: ":method", Value: "POST"},
		{Name: ":scheme", Value: "http"},
		{Name: ":path", Value: echo.Say},
		{Name: ":authority", Value: "test"},
		{Name: "content-type", Value: "application/grpc"},
		{Name: "te", Value: "trailers"},
	}, more...) {
		require.NoError(c.t, enc.WriteField(f))
	}
	const frame = 16 << 10
	first := block.Next(frame)
	err := c.WriteHeaders(http2.HeadersFrameParam{StreamID: c.stream, BlockFragment: first, EndHeaders: block.Len() == 0})
	for err == nil && block.Len() > 0 {
		next := block.Next(frame)
		err = c.WriteContinuation(c.stream, block.Len() == 0, next)
	}
	return err
}

// until reads frames until there is one like this, or the connection ends.
func (c *client) until(like func(http2.Frame) bool) (http2.Frame, error) {
	for {
		frame, err := c.ReadFrame()
		if err != nil || like(frame) {
			return frame, err
		}
	}
}

func TestServer_ClosesSilentConnection(t *testing.T) {
	s := start(t, grpcserver.Options{}, echo.Echo{})
	var settings bytes.Buffer
	require.NoError(t, http2.NewFramer(&settings, nil).WriteSettings())
	for name, tt := range map[string]struct {
		first string
		limit time.Duration
	}{
		"silence":               {"", 5 * time.Second},
		"half of the preface":   {http2.ClientPreface[:12], 5 * time.Second},
		"no settings":           {http2.ClientPreface, 5 * time.Second},
		"half of the settings":  {http2.ClientPreface + settings.String()[:4], 5 * time.Second},
		"then silence":          {http2.ClientPreface + settings.String(), 40 * time.Second},
		"half of a frame":       {http2.ClientPreface + settings.String() + "\x00\x00\x10\x01", 40 * time.Second},
		"HTTP/1.1":              {"GET / HTTP/1.1\r\nHost: test\r\n\r\n", time.Second},
		"noise":                 {strings.Repeat("\x16\x03\x01\xff", 1000), time.Second},
		"noise after a preface": {http2.ClientPreface + strings.Repeat("\xff", 1000), time.Second},
		"noise after settings":  {http2.ClientPreface + settings.String() + strings.Repeat("\xff", 1000), time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			begin := time.Now()
			conn := connect(t, s, tt.first)
			require.NoError(t, conn.SetReadDeadline(begin.Add(tt.limit+4*time.Second)))
			_, err := io.Copy(io.Discard, conn)
			require.NotErrorIs(t, err, os.ErrDeadlineExceeded)
			_, err = s.say(t.Context())
			assert.NoError(t, err)
		})
	}
}

func TestServer_RefusesLargeHeaders(t *testing.T) {
	s := start(t, grpcserver.Options{}, echo.Echo{})
	for name, tt := range map[string]struct {
		size   int
		served bool
	}{
		"as many as anyone needs": {6 << 10, true},
		"too many":                {1 << 20, false},
	} {
		t.Run(name, func(t *testing.T) {
			c := newClient(t, s)
			_ = c.call("hello", hpack.HeaderField{Name: "x", Value: strings.Repeat("x", tt.size)}) // it may be cut off
			frame, err := c.until(func(f http2.Frame) bool {
				switch f.(type) {
				case *http2.HeadersFrame, *http2.RSTStreamFrame:
					return true
				}
				return false
			})
			_, served := frame.(*http2.HeadersFrame)
			assert.Equal(t, tt.served, served, "%v %v", frame, err)

			// Our own client knows the limit by the server's settings, and keeps it.
			ctx := metadata.AppendToOutgoingContext(t.Context(), "x", strings.Repeat("x", tt.size))
			_, err = s.say(ctx)
			assert.Equal(t, tt.served, err == nil, "%v", err)
		})
	}
	_, err := s.say(t.Context())
	require.NoError(t, err)
}

// CVE-2023-44487: streams that are reset at once count no more towards the
// limit of streams, while their handlers run on.
func TestServer_SurvivesRapidResets(t *testing.T) {
	const maxStreams = 512
	for name, minds := range map[string]bool{"handlers that mind their context": true, "handlers that do not": false} {
		t.Run(name, func(t *testing.T) {
			g := make(chan struct{})
			open := sync.OnceFunc(func() { close(g) })
			defer open()
			var begun, running, most atomic.Int64
			s := start(t, grpcserver.Options{}, echo.Echo{Say: func(ctx context.Context, said string) (string, error) {
				if said != "hostile" {
					return said, nil
				}
				begun.Add(1)
				for now := running.Add(1); ; {
					if was := most.Load(); now <= was || most.CompareAndSwap(was, now) {
						break
					}
				}
				defer running.Add(-1)
				if minds {
					<-ctx.Done()
				} else {
					<-g
				}
				return "", ctx.Err()
			}})
			_, err := s.say(t.Context())
			require.NoError(t, err)
			goroutines, heap := runtime.NumGoroutine(), heapInUse()

			c := newClient(t, s)
			var flood sync.WaitGroup
			var sent atomic.Int64
			flood.Go(func() { _, _ = c.until(func(http2.Frame) bool { return false }) })
			flood.Go(func() {
				for c.call("hostile") == nil && c.WriteRSTStream(c.stream, http2.ErrCodeCancel) == nil {
					sent.Add(1)
				}
			})
			for range 500 {
				begin := time.Now()
				_, err := s.say(t.Context())
				require.NoError(t, err)
				assert.Less(t, time.Since(begin), aWhile)
			}
			kittest.Eventually(t, func() bool { return sent.Load() > 20*maxStreams }, "the flood")
			t.Logf("%d calls sent, %d begun, %d at once", sent.Load(), begun.Load(), most.Load())
			assert.LessOrEqual(t, most.Load(), int64(maxStreams))

			require.NoError(t, c.Close())
			flood.Wait()
			open()
			kittest.Eventually(t, func() bool { return running.Load() == 0 && runtime.NumGoroutine() <= goroutines+10 }, "the goroutines end")
			kittest.Eventually(t, func() bool { return heapInUse() < heap+16<<20 }, "the memory is free")
		})
	}
}

func heapInUse() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapInuse
}
