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
	"slices"
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

// serveProcess runs a server in this process, which a test has started, so that the
// memory of the process is the server's only. It prints its address. Its method Say
// returns the bytes of its heap and stacks; "collect" collects garbage first.
func serveProcess() {
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

// serverProcess is a server in a process of its own, with a client.
type serverProcess struct {
	addr string
	say  func(text string) (uint64, error) // calls Say of serveProcess
	pid  int
}

func startProcess(t *testing.T) *serverProcess {
	t.Helper()
	p := kittest.Start(t, os.Args[0], "TEST_SERVER=1", "GOMEMLIMIT=115MiB")
	kittest.Eventually(t, func() bool { return strings.Contains(p.Log.String(), "\n") }, "the server's address")
	s := &serverProcess{addr: strings.TrimSpace(p.Log.String()), pid: p.PID()}
	conn, err := grpcclient.New("dns:///"+s.addr, grpcclient.Options{Timeout: testTimeout, Telemetry: kittest.Telemetry(t, io.Discard)})
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

// peak returns the largest resident set size so far in MiB, or 0 on systems without
// /proc.
func (s *serverProcess) peak() float64 {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.pid))
	_, rest, _ := strings.Cut(string(text), "VmHWM:")
	kib, _, _ := strings.Cut(strings.TrimSpace(rest), " ")
	n, _ := strconv.ParseFloat(kib, 64)
	return n / 1024
}

// attack sends the bytes of an attack on a new connection, and keeps it open.
func (s *serverProcess) attack(t *testing.T, parts [2][]byte) {
	conn, err := net.Dial("tcp", s.addr)
	if err != nil {
		return // the queue of the server's listener may be full
	}
	t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetWriteDeadline(time.Now().Add(testTimeout))
	go func() { _, _ = io.Copy(io.Discard, conn) }()
	_, _ = conn.Write(parts[0])       // the server may close the connection
	time.Sleep(50 * time.Millisecond) // until the server has enlarged its windows for the messages
	_, _ = conn.Write(parts[1])
}

// attack describes what a hostile client sends: calls of Say that it never completes.
type attack struct {
	streams int // number of calls
	headers int // additional headers of each call, of 3 bytes each
	message int // bytes of each message, according to its prefix
	sent    int // bytes of each message that are sent
	frame   int // bytes of each DATA frame
}

// bytes returns the bytes to send: first the headers and the prefixes of the messages,
// then the messages.
func (a attack) bytes(t *testing.T) [2][]byte {
	t.Helper()
	var out, rest, block bytes.Buffer
	out.WriteString(http2.ClientPreface)
	f, r := http2.NewFramer(&out, nil), http2.NewFramer(&rest, nil)
	require.NoError(t, f.WriteSettings())
	enc := hpack.NewEncoder(&block)
	for i := range a.streams {
		fields := slices.Clone(sayHeaders)
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

// attacks make a server hold memory for calls whose handlers never start.
var attacks = map[string]attack{
	"200 half messages of 1 MiB": {streams: 200, message: 1 * mib, sent: 256 << 10, frame: 16 << 10},
	"large frames":               {streams: 512, message: 64 << 10, sent: 60 << 10, frame: 16 << 10},
	"frames just above a buffer": {streams: 512, message: 64 << 10, sent: 60 << 10, frame: 8<<10 + 1},
	"small frames":               {streams: 512, message: 64 << 10, sent: 60 << 10, frame: 1025},
	"frames of one byte":         {streams: 512, message: 64 << 10, sent: 8 << 10, frame: 1},
	"many headers":               {streams: 512, headers: 200},
	"headers without messages":   {streams: 512},
	"a connection without calls": {},
}

// One hostile connection cannot make the server hold 16 MiB, and the calls of other
// clients are served meanwhile. (Without limits, 200 half messages of 1 MiB took 208 MiB.)
func TestServer_OneConnectionHoldsLittle(t *testing.T) {
	for name, a := range attacks {
		t.Run(name, func(t *testing.T) {
			s := startProcess(t)
			for range 100 {
				_, err := s.say("")
				require.NoError(t, err)
			}
			before, err := s.say("collect")
			require.NoError(t, err)
			s.attack(t, a.bytes(t))
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

// A thousand hostile connections with all kinds of attacks do not push the server beyond
// the memory of its pod (128 MiB), and the calls of other clients are served meanwhile.
func TestServer_ThousandConnections(t *testing.T) {
	var all [][2][]byte
	for _, a := range attacks {
		parts := a.bytes(t)
		for i, part := range parts {
			parts[i] = part[:min(len(part), 128<<10)] // 128 MiB in a thousand connections
		}
		all = append(all, parts)
	}
	s := startProcess(t)
	var hostile sync.WaitGroup
	next := make(chan [2][]byte)
	for range 50 {
		hostile.Go(func() {
			for parts := range next {
				s.attack(t, parts)
			}
		})
	}
	var most uint64
	call := func() {
		now, err := s.say("")
		require.NoError(t, err)
		most = max(most, now)
	}
	for i := range 1000 {
		call()
		next <- all[i%len(all)]
	}
	close(next)
	for range 100 {
		call()
	}
	hostile.Wait()
	call()
	t.Logf("%.1f MiB at most; %.1f MiB resident", float64(most)/mib, s.peak())
	assert.Less(t, most, uint64(100*mib))
}

// A call whose message does not arrive ends after 15 s, even if the client sent a
// later deadline.
func TestServer_HalfMessageEndsInTime(t *testing.T) {
	t.Parallel()
	s := start(t, grpcserver.Options{}, echo.Echo{})
	for name, more := range map[string][]hpack.HeaderField{"no deadline": nil, "in an hour": {{Name: "grpc-timeout", Value: "1H"}}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newRawClient(t, s)
			require.NoError(t, c.open(more...))
			require.NoError(t, c.WriteData(c.stream, false, []byte{0, 0, 0, 0, 10, 'h', 'a', 'l', 'f'}))
			require.NoError(t, c.SetReadDeadline(time.Now().Add(25*time.Second)))
			frame, err := c.readUntil(func(f http2.Frame) bool { return f.Header().Type == http2.FrameHeaders })
			require.NoError(t, err)
			fields, err := hpack.NewDecoder(4096, nil).DecodeFull(frame.(*http2.HeadersFrame).HeaderBlockFragment())
			require.NoError(t, err)
			assert.Contains(t, fields, hpack.HeaderField{Name: "grpc-status", Value: strconv.Itoa(int(codes.DeadlineExceeded))})
		})
	}
}

// The memory that a call holds, by package connlimit's estimate, is released when the
// call ends, with every kind of outcome.
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
	}, "the connection holds only what it holds without calls")
}
