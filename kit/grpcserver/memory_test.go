package grpcserver_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"example.com/tandem/kit/grpcclient"
	"example.com/tandem/kit/grpcserver"
	"example.com/tandem/kit/health"
	"example.com/tandem/kit/instance"
	"example.com/tandem/kit/internal/echo"
	"example.com/tandem/kit/kittest"
	"example.com/tandem/kit/limiter"
	"example.com/tandem/kit/telemetry"
)

const mib = 1 << 20

// serveAlone is a server in a process of its own, so that its memory can be told
// from that of its clients. It prints its address. Its method Say returns what
// its heap and stacks take: after a garbage collection if that is what was said.
func serveAlone() {
	tel, err := telemetry.New(context.Background(), instance.Instance{}, 0, nil, io.Discard)
	if err != nil {
		panic(err)
	}
	state := health.New(instance.Instance{})
	s := grpcserver.New(grpcserver.Options{
		AddrVar: "GRPC_ADDR", Addr: "127.0.0.1:0", Telemetry: tel, Health: state, Limiter: limiter.New(512, tel.Metrics),
	})
	echo.Echo{Say: func(_ context.Context, said string) (string, error) {
		if said == "collect" {
			runtime.GC()
		}
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return strconv.FormatUint(m.HeapInuse+m.StackInuse, 10), nil
	}}.Register(s)
	if err := s.Listen(); err != nil {
		panic(err)
	}
	state.Ready()
	fmt.Println(s.Addr())
	if err := s.Serve(); err != nil {
		panic(err)
	}
}

// alone is a server in a process of its own, and an honest caller of it.
type alone struct {
	addr string
	say  func(text string) (uint64, error)
	pid  int
}

// peak is the most memory that the server has had, of whatever kind, in MiB.
// It is 0 where there is no /proc.
func (s *alone) peak() float64 {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.pid))
	_, rest, _ := strings.Cut(string(text), "VmHWM:")
	kib, _, _ := strings.Cut(strings.TrimSpace(rest), " ")
	n, _ := strconv.ParseFloat(kib, 64)
	return n / 1024
}

func startAlone(t *testing.T) *alone {
	t.Helper()
	p := kittest.Start(t, os.Args[0], "TEST_SERVER=1", "GOMEMLIMIT=115MiB")
	kittest.Eventually(t, func() bool { return strings.Contains(p.Log.String(), "\n") }, "the server's address")
	s := &alone{addr: strings.TrimSpace(p.Log.String()), pid: p.PID()}
	conn, err := grpcclient.New("dns:///"+s.addr, grpcclient.Options{Timeout: aWhile, Telemetry: kittest.Telemetry(t, io.Discard)})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, conn.Close()) })
	s.say = func(text string) (uint64, error) {
		out, err := echo.Call(t.Context(), conn, echo.Say, text)
		if err != nil {
			return 0, err
		}
		return strconv.ParseUint(out, 10, 64)
	}
	return s
}

// flood sends an attack on a new connection and keeps it open.
func (s *alone) flood(t *testing.T, what [2][]byte) {
	conn, err := net.Dial("tcp", s.addr)
	if err != nil {
		return // the attack may overrun the server's queue of connections
	}
	t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetWriteDeadline(time.Now().Add(aWhile))
	go func() { _, _ = io.Copy(io.Discard, conn) }()
	_, _ = conn.Write(what[0])        // it may be cut off
	time.Sleep(50 * time.Millisecond) // the server opens its windows for the messages
	_, _ = conn.Write(what[1])
}

// attack is what one hostile client sends: streams calls of Say whose messages
// have frames of some size, and never end.
type attack struct {
	streams, message, sent, frame int
	headers                       int // more headers, of 3 bytes each
}

// bytes returns what opens the streams and begins the messages, and then the rest.
func (a attack) bytes(t *testing.T) [2][]byte {
	t.Helper()
	var out, rest, block bytes.Buffer
	out.WriteString(http2.ClientPreface)
	f, r := http2.NewFramer(&out, nil), http2.NewFramer(&rest, nil)
	require.NoError(t, f.WriteSettings())
	enc := hpack.NewEncoder(&block)
	for i := range a.streams {
		fields := []hpack.HeaderField{
			{Name: ":method", Value: "POST"},
			{Name: ":scheme", Value: "http"},
			{Name: ":path", Value: echo.Say},
			{Name: ":authority", Value: "test"},
			{Name: "content-type", Value: "application/grpc"},
			{Name: "te", Value: "trailers"},
		}
		for n := range a.headers {
			fields = append(fields, hpack.HeaderField{Name: strconv.FormatInt(int64(n+100), 36), Value: "x"})
		}
		block.Reset()
		for _, field := range fields {
			require.NoError(t, enc.WriteField(field))
		}
		stream := uint32(2*i + 1)
		require.NoError(t, f.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: block.Bytes(), EndHeaders: true}))
		if a.message > 0 {
			require.NoError(t, f.WriteData(stream, false, binary.BigEndian.AppendUint32([]byte{0}, uint32(a.message))))
		}
		data := make([]byte, a.sent)
		for len(data) > 0 {
			n := min(a.frame, len(data))
			require.NoError(t, r.WriteData(stream, false, data[:n]))
			data = data[n:]
		}
	}
	return [2][]byte{out.Bytes(), rest.Bytes()}
}

// attacks are ways to make a server hold memory for calls that never begin.
var attacks = map[string]attack{
	"200 half messages of 1 MiB": {streams: 200, message: 1 * mib, sent: 256 << 10, frame: 16 << 10},
	"large frames":               {streams: 512, message: 64 << 10, sent: 60 << 10, frame: 16 << 10},
	"frames just above a buffer": {streams: 512, message: 64 << 10, sent: 60 << 10, frame: 8<<10 + 1},
	"small frames":               {streams: 512, message: 64 << 10, sent: 60 << 10, frame: 1025},
	"frames of one byte":         {streams: 512, message: 64 << 10, sent: 8 << 10, frame: 1},
	"many headers":               {streams: 512, headers: 200},
	"streams only":               {streams: 512},
	"a connection only":          {},
}

// One connection cannot make the server hold 16 MiB, and honest calls are served
// meanwhile. (Without limits 200 half messages of 1 MiB took 208 MiB.)
func TestServer_OneConnectionHoldsLittle(t *testing.T) {
	for name, a := range attacks {
		t.Run(name, func(t *testing.T) {
			s := startAlone(t)
			for range 100 {
				_, err := s.say("")
				require.NoError(t, err)
			}
			before, err := s.say("collect")
			require.NoError(t, err)
			s.flood(t, a.bytes(t))
			var most uint64
			for range 50 {
				now, err := s.say("collect")
				require.NoError(t, err)
				most = max(most, now)
				time.Sleep(10 * time.Millisecond)
			}
			t.Logf("%.1f MiB before, %.1f MiB at most; %.1f MiB resident", float64(before)/mib, float64(most)/mib, s.peak())
			assert.Less(t, most, before+16*mib)
		})
	}
}

// A thousand hostile connections of all kinds do not take the server beyond the
// memory of its pod (128 MiB), and honest calls are served meanwhile.
func TestServer_ThousandConnections(t *testing.T) {
	var whats [][2][]byte
	for _, a := range attacks {
		what := a.bytes(t)
		for i, part := range what {
			what[i] = part[:min(len(part), 128<<10)] // a thousand of these are more than enough
		}
		whats = append(whats, what)
	}
	s := startAlone(t)
	var hostile sync.WaitGroup
	next := make(chan [2][]byte)
	for range 50 {
		hostile.Go(func() {
			for what := range next {
				s.flood(t, what)
			}
		})
	}
	var most uint64
	honest := func() {
		now, err := s.say("")
		require.NoError(t, err)
		most = max(most, now)
	}
	for i := range 1000 {
		honest()
		next <- whats[i%len(whats)]
	}
	close(next)
	for range 100 {
		honest()
	}
	hostile.Wait()
	honest()
	t.Logf("%.1f MiB at most; %.1f MiB resident", float64(most)/mib, s.peak())
	assert.Less(t, most, uint64(100*mib))
}

// A message that does not arrive ends its call after 15 s, whatever deadline the
// client claims, and frees its stream.
func TestServer_HalfMessageEndsInTime(t *testing.T) {
	t.Parallel()
	s := start(t, grpcserver.Options{}, echo.Echo{})
	for name, more := range map[string][]hpack.HeaderField{"no deadline": nil, "an hour": {{Name: "grpc-timeout", Value: "1H"}}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newClient(t, s)
			require.NoError(t, c.open(more...))
			require.NoError(t, c.WriteData(c.stream, false, []byte{0, 0, 0, 0, 10, 'h', 'a', 'l', 'f'}))
			require.NoError(t, c.SetReadDeadline(time.Now().Add(25*time.Second)))
			frame, err := c.until(func(f http2.Frame) bool { return f.Header().Type == http2.FrameHeaders })
			require.NoError(t, err)
			fields, err := hpack.NewDecoder(4096, nil).DecodeFull(frame.(*http2.HeadersFrame).HeaderBlockFragment())
			require.NoError(t, err)
			assert.Contains(t, fields, hpack.HeaderField{Name: "grpc-status", Value: strconv.Itoa(int(codes.DeadlineExceeded))})
		})
	}
}

// What calls hold is released when they end, however they end.
func TestServer_ReleasesWhatCallsHeld(t *testing.T) {
	tel := kittest.Telemetry(t, io.Discard)
	s := start(t, grpcserver.Options{Telemetry: tel}, echo.Echo{
		Say: func(ctx context.Context, said string) (string, error) {
			switch said {
			case "wait":
				<-ctx.Done()
				return "", ctx.Err()
			case "fail":
				return "", status.Error(codes.InvalidArgument, "no")
			}
			return said, nil
		},
		Watch: func(ss grpc.ServerStream) error { return echo.Send(ss, "once") },
	})
	conn := dial(t, s)
	for range 10 {
		for _, text := range []string{"", "fail", strings.Repeat("x", 50<<10), strings.Repeat("x", 100<<10)} {
			_, _ = echo.Call(t.Context(), conn, echo.Say, text)
		}
		_, _ = echo.Call(t.Context(), conn, "/no/Method", "")
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		_, err := echo.Call(ctx, conn, echo.Say, "wait")
		require.Error(t, err)
		cancel()
		stream, err := echo.Open(t.Context(), conn)
		require.NoError(t, err)
		_, err = stream.Recv()
		require.NoError(t, err)
		_, err = stream.Recv()
		require.ErrorIs(t, err, io.EOF)
	}
	kittest.Eventually(t, func() bool {
		return strings.Contains(kittest.Scrape(t, tel), "\nserver_connections_held_bytes{server=\"grpc\"} 40960\n")
	}, "one connection holds what it holds without calls")
}
