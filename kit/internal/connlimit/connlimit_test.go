package connlimit

import (
	"bytes"
	"io"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"golang.org/x/net/http2"

	"example.com/tandem/kit/kittest"
	"example.com/tandem/kit/telemetry"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// The scanner finds all frames in pieces of every size.
func TestScanner_FindsFrames(t *testing.T) {
	var out bytes.Buffer
	out.WriteString(http2.ClientPreface)
	f := http2.NewFramer(&out, nil)
	require.NoError(t, f.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1}))
	require.NoError(t, f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1<<31 - 1, BlockFragment: []byte("block"), EndHeaders: true}))
	require.NoError(t, f.WriteData(1<<31-1, false, make([]byte, 300)))
	require.NoError(t, f.WriteData(1<<31-1, true, nil))
	want := []frame{
		{kind: http2.FrameSettings, stream: 0, length: 6},
		{kind: http2.FrameHeaders, flags: http2.FlagHeadersEndHeaders, stream: 1<<31 - 1, length: 5},
		{kind: http2.FrameData, stream: 1<<31 - 1, length: 300},
		{kind: http2.FrameData, flags: http2.FlagDataEndStream, stream: 1<<31 - 1, length: 0},
	}
	for size := 1; size <= out.Len(); size++ {
		s := scanner{skip: prefaceLen}
		var got []frame
		for p := out.Bytes(); len(p) > 0; {
			n := min(size, len(p))
			s.scan(p[:n], func(f frame) { got = append(got, f) })
			p = p[n:]
		}
		require.Equal(t, want, got, "pieces of %d bytes", size)
	}
}

// testListener is a Listener on a loopback port, with its metrics.
type testListener struct {
	*Listener
	tel *telemetry.Telemetry
}

func listen(t *testing.T, o Options) *testListener {
	t.Helper()
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = tcp.Close() })
	tel := kittest.Telemetry(t, io.Discard)
	o.Name, o.Metrics = "test", tel.Metrics
	return &testListener{New(tcp, o), tel}
}

// connect opens a connection from the IP address from, and returns both ends.
func (l *testListener) connect(t *testing.T, from string) (client net.Conn, server *conn) {
	t.Helper()
	client, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}).Dial("tcp", l.Addr().String())
	require.NoError(t, err)
	t.Cleanup(func() { _ = client.Close() })
	accepted, err := l.Accept()
	require.NoError(t, err)
	t.Cleanup(func() { _ = accepted.Close() })
	return client, accepted.(*conn)
}

// send sends n bytes from the client, and reads them at the server.
func send(t *testing.T, client net.Conn, server *conn, n int) {
	t.Helper()
	_, err := client.Write(make([]byte, n))
	require.NoError(t, err)
	_, _ = io.ReadFull(server, make([]byte, n)) // fails if the connection is evicted
}

// An HTTP/1.1 request holds memory until its response starts, and a connection until it
// closes.
func TestListener_EstimatesHTTP1(t *testing.T) {
	l := listen(t, Options{Budget: 1 << 30, PerConn: 1 << 30})
	client, server := l.connect(t, "127.0.0.1")
	assert.Equal(t, int64(http1Conn), l.held.Load())
	send(t, client, server, 1000)
	assert.Equal(t, int64(http1Conn+http1Factor*1000), l.held.Load())
	send(t, client, server, 40<<10)
	body := 1000 + (40 << 10) - http1Header
	assert.Equal(t, int64(http1Conn+http1Factor*http1Header+dataFactor*body), l.held.Load())
	_, err := server.Write([]byte("response"))
	require.NoError(t, err)
	assert.Equal(t, int64(http1Conn), l.held.Load())
	text := kittest.Scrape(t, l.tel)
	assert.Contains(t, text, "server_connections{server=\"test\"} 1\n")
	assert.Contains(t, text, "server_connections_held_bytes{server=\"test\"} 16384\n")

	require.NoError(t, server.Close())
	_ = server.Close() // changes nothing, even if a server closes twice
	assert.Zero(t, l.held.Load())
	assert.Empty(t, l.conns)
	assert.Empty(t, l.addrs)
}

// A connection that holds more than PerConn is evicted.
func TestListener_LimitsOneConnection(t *testing.T) {
	l := listen(t, Options{Budget: 1 << 30, PerConn: http1Conn + 100*http1Factor})
	client, server := l.connect(t, "127.0.0.1")
	send(t, client, server, 100)
	assert.Len(t, l.conns, 1)
	send(t, client, server, 1)
	assert.Empty(t, l.conns)
	assert.Contains(t, kittest.Scrape(t, l.tel), "server_connections_evicted_total{server=\"test\"} 1\n")
}

// Beyond the budget the connection with the largest product of its bytes, the square of
// its address's bytes and its time without a response is evicted. Each case changes one
// or two of these factors.
func TestListener_EvictsTheWorst(t *testing.T) {
	addrs := kittest.Loopbacks(t, 2)
	tests := map[string]func(t *testing.T, l *testListener) (worst *conn){
		"holds most": func(t *testing.T, l *testListener) *conn {
			client, server := l.connect(t, addrs[0])
			l.connect(t, addrs[0])
			send(t, client, server, 1000)
			return server
		},
		"address holds most": func(t *testing.T, l *testListener) *conn {
			otherClient, otherServer := l.connect(t, addrs[1])
			send(t, otherClient, otherServer, 100)
			_, worst := l.connect(t, addrs[0])
			largeClient, largeServer := l.connect(t, addrs[0])
			send(t, largeClient, largeServer, 10_000)
			time.Sleep(50 * time.Millisecond)               // the other two become equally idle
			_, err := largeServer.Write([]byte("response")) // this one does not
			require.NoError(t, err)
			send(t, largeClient, largeServer, 10)
			return worst
		},
		"longest without a response": func(t *testing.T, l *testListener) *conn {
			_, worst := l.connect(t, addrs[0])
			_, served := l.connect(t, addrs[0])
			time.Sleep(20 * time.Millisecond)
			_, err := served.Write([]byte("response"))
			require.NoError(t, err)
			return worst
		},
	}
	for name, prepare := range tests {
		t.Run(name, func(t *testing.T) {
			l := listen(t, Options{Budget: 1 << 30, PerConn: 1 << 30})
			worst := prepare(t, l)
			before := len(l.conns)
			l.o.Budget = l.held.Load() - 1
			l.enforce()
			assert.Len(t, l.conns, before-1)
			assert.True(t, worst.closed)
		})
	}
}

// A new connection is accepted even if the budget is used up: an older one is evicted.
func TestListener_AcceptsBeyondTheBudget(t *testing.T) {
	l := listen(t, Options{Budget: 3 * http1Conn, PerConn: 1 << 30})
	for range 20 {
		client, server := l.connect(t, "127.0.0.1")
		send(t, client, server, 1)
		_, err := server.Write([]byte("response"))
		require.NoError(t, err)
	}
	assert.LessOrEqual(t, len(l.conns), 3)
}
