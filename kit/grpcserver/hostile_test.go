package grpcserver_test

import (
	"bytes"
	"context"
	"io"
	"net"
	"os"
	"runtime"
	"slices"
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

// rawClient sends the HTTP/2 frames that a test chooses.
type rawClient struct {
	net.Conn
	*http2.Framer
	t      *testing.T
	stream uint32
}

// connect opens a connection and sends first on it.
func connect(t *testing.T, s *server, first string) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", s.Addr().String())
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() }) // it may be closed
	_, err = io.WriteString(conn, first)
	require.NoError(t, err)
	return conn
}

func newRawClient(t *testing.T, s *server) *rawClient {
	t.Helper()
	conn := connect(t, s, http2.ClientPreface)
	c := &rawClient{Conn: conn, Framer: http2.NewFramer(conn, conn), t: t}
	require.NoError(t, c.WriteSettings())
	return c
}

// call sends a call of Say, with additional headers.
func (c *rawClient) call(text string, more ...hpack.HeaderField) error {
	c.t.Helper()
	if err := c.open(more...); err != nil {
		return err
	}
	message, err := proto.Marshal(wrapperspb.String(text))
	require.NoError(c.t, err)
	return c.WriteData(c.stream, true, append([]byte{0, 0, 0, 0, byte(len(message))}, message...))
}

// sayHeaders are the headers of a call of Say.
var sayHeaders = []hpack.HeaderField{
	{Name: ":method", Value: "POST"},
	{Name: ":scheme", Value: "http"},
	{Name: ":path", Value: echo.Say},
	{Name: ":authority", Value: "test"},
	{Name: "content-type", Value: "application/grpc"},
	{Name: "te", Value: "trailers"},
}

// open sends the headers of a call of Say, with additional ones.
func (c *rawClient) open(more ...hpack.HeaderField) error {
	c.t.Helper()
	c.stream = max(c.stream+2, 1) | 1
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	for _, f := range slices.Concat(sayHeaders, more) {
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

// readUntil reads frames until one matches, or the connection ends.
func (c *rawClient) readUntil(match func(http2.Frame) bool) (http2.Frame, error) {
	for {
		frame, err := c.ReadFrame()
		if err != nil || match(frame) {
			return frame, err
		}
	}
}

// A connection is closed if its client sends no valid HTTP/2: within connectTimeout
// before its settings have arrived, and within pingEvery + pingTimeout after that.
func TestServer_ClosesSilentConnection(t *testing.T) {
	s := start(t, grpcserver.Options{}, echo.Echo{})
	var settings bytes.Buffer
	require.NoError(t, http2.NewFramer(&settings, nil).WriteSettings())
	for name, tt := range map[string]struct {
		first string
		limit time.Duration
	}{
		"nothing":                 {first: "", limit: 5 * time.Second},
		"half a preface":          {first: http2.ClientPreface[:12], limit: 5 * time.Second},
		"no settings":             {first: http2.ClientPreface, limit: 5 * time.Second},
		"half the settings":       {first: http2.ClientPreface + settings.String()[:4], limit: 5 * time.Second},
		"nothing after settings":  {first: http2.ClientPreface + settings.String(), limit: 40 * time.Second},
		"half a frame":            {first: http2.ClientPreface + settings.String() + "\x00\x00\x10\x01", limit: 40 * time.Second},
		"HTTP/1.1":                {first: "GET / HTTP/1.1\r\nHost: test\r\n\r\n", limit: time.Second},
		"no HTTP/2":               {first: strings.Repeat("\x16\x03\x01\xff", 1000), limit: time.Second},
		"no HTTP/2 after preface": {first: http2.ClientPreface + strings.Repeat("\xff", 1000), limit: time.Second},
		"no frame after settings": {first: http2.ClientPreface + settings.String() + strings.Repeat("\xff", 1000), limit: time.Second},
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

// Calls with too many bytes of headers fail, and others are served.
func TestServer_RefusesLargeHeaders(t *testing.T) {
	s := start(t, grpcserver.Options{}, echo.Echo{})
	for name, tt := range map[string]struct {
		size   int
		served bool
	}{
		"below the limit": {size: 6 << 10, served: true},
		"above the limit": {size: 1 << 20, served: false},
	} {
		t.Run(name, func(t *testing.T) {
			c := newRawClient(t, s)
			_ = c.call("hello", hpack.HeaderField{Name: "x", Value: strings.Repeat("x", tt.size)}) // the server may close the connection
			frame, err := c.readUntil(func(f http2.Frame) bool {
				switch f.(type) {
				case *http2.HeadersFrame, *http2.RSTStreamFrame:
					return true
				}
				return false
			})
			_, served := frame.(*http2.HeadersFrame)
			assert.Equal(t, tt.served, served, "%v %v", frame, err)

			// grpcclient reads the limit from the server's settings, and fails the call itself.
			ctx := metadata.AppendToOutgoingContext(t.Context(), "x", strings.Repeat("x", tt.size))
			_, err = s.say(ctx)
			assert.Equal(t, tt.served, err == nil, "%v", err)
		})
	}
	_, err := s.say(t.Context())
	require.NoError(t, err)
}

// A flood of calls that are reset directly after they are sent (CVE-2023-44487) does
// not delay other callers, and runs at most maxStreams handlers. A stream that was
// reset no longer counts towards the limit of streams, but its handler still runs.
func TestServer_SurvivesRapidResets(t *testing.T) {
	const maxStreams = 512
	for name, endsWithContext := range map[string]bool{"handlers end with their context": true, "handlers ignore their context": false} {
		t.Run(name, func(t *testing.T) {
			g := newGate(t)
			var started, running, most atomic.Int64
			s := start(t, grpcserver.Options{}, echo.Echo{Say: func(ctx context.Context, said string) (string, error) {
				if said != "hostile" {
					return said, nil
				}
				started.Add(1)
				for now := running.Add(1); ; {
					if was := most.Load(); now <= was || most.CompareAndSwap(was, now) {
						break
					}
				}
				defer running.Add(-1)
				if endsWithContext {
					<-ctx.Done()
				} else {
					<-g.opened
				}
				return "", ctx.Err()
			}})
			_, err := s.say(t.Context())
			require.NoError(t, err)
			goroutines, heap := runtime.NumGoroutine(), heapInUse()

			c := newRawClient(t, s)
			var flood sync.WaitGroup
			var sent atomic.Int64
			flood.Go(func() { _, _ = c.readUntil(func(http2.Frame) bool { return false }) })
			flood.Go(func() {
				for c.call("hostile") == nil && c.WriteRSTStream(c.stream, http2.ErrCodeCancel) == nil {
					sent.Add(1)
				}
			})
			for range 500 {
				begin := time.Now()
				_, err := s.say(t.Context())
				require.NoError(t, err)
				assert.Less(t, time.Since(begin), testTimeout)
			}
			kittest.Eventually(t, func() bool { return sent.Load() > 20*maxStreams }, "the flood is longer than 20 times the limit of streams")
			t.Logf("%d calls sent, %d handlers started, at most %d at the same time", sent.Load(), started.Load(), most.Load())
			assert.LessOrEqual(t, most.Load(), int64(maxStreams))

			require.NoError(t, c.Close())
			flood.Wait()
			g.open()
			kittest.Eventually(t, func() bool {
				return running.Load() == 0 && runtime.NumGoroutine() <= goroutines+10
			}, "the handlers and goroutines of the flood end")
			kittest.Eventually(t, func() bool { return heapInUse() < heap+16<<20 }, "the memory of the flood is freed")
		})
	}
}

// heapInUse returns the bytes of the heap in use after a garbage collection.
func heapInUse() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapInuse
}
