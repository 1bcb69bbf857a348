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

// Frames are found however the bytes are cut into pieces.
func TestScanner_FindsFrames(t *testing.T) {
	var out bytes.Buffer
	out.WriteString(http2.ClientPreface)
	f := http2.NewFramer(&out, nil)
	require.NoError(t, f.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1}))
	require.NoError(t, f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1<<31 - 1, BlockFragment: []byte("block"), EndHeaders: true}))
	require.NoError(t, f.WriteData(1<<31-1, false, make([]byte, 300)))
	require.NoError(t, f.WriteData(1<<31-1, true, nil))
	want := []frame{
		{http2.FrameSettings, 0, 0, 6},
		{http2.FrameHeaders, http2.FlagHeadersEndHeaders, 1<<31 - 1, 5},
		{http2.FrameData, 0, 1<<31 - 1, 300},
		{http2.FrameData, http2.FlagDataEndStream, 1<<31 - 1, 0},
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

// pair is a Listener and both ends of connections to it.
type pair struct {
	*Listener
	tel *telemetry.Telemetry
}

func listen(t *testing.T, o Options) *pair {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = l.Close() })
	tel := kittest.Telemetry(t, io.Discard)
	o.Name, o.Metrics = "test", tel.Metrics
	return &pair{New(l, o), tel}
}

// connect opens a connection from an address, and returns both ends.
func (p *pair) connect(t *testing.T, from string) (client net.Conn, server *conn) {
	t.Helper()
	client, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}).Dial("tcp", p.Addr().String())
	require.NoError(t, err)
	t.Cleanup(func() { _ = client.Close() })
	accepted, err := p.Accept()
	require.NoError(t, err)
	t.Cleanup(func() { _ = accepted.Close() })
	return client, accepted.(*conn)
}

// send sends n bytes and has the server read them.
func send(t *testing.T, client net.Conn, server *conn, n int) {
	t.Helper()
	_, err := client.Write(make([]byte, n))
	require.NoError(t, err)
	_, _ = io.ReadFull(server, make([]byte, n)) // it may be evicted
}

// A request holds memory until the response begins, and a connection until it closes.
func TestListener_EstimatesHTTP1(t *testing.T) {
	p := listen(t, Options{Budget: 1 << 30, PerConn: 1 << 30})
	client, server := p.connect(t, "127.0.0.1")
	assert.Equal(t, int64(http1Conn), p.held.Load())
	send(t, client, server, 1000)
	assert.Equal(t, int64(http1Conn+http1Factor*1000), p.held.Load())
	send(t, client, server, 40<<10)
	body := 1000 + (40 << 10) - http1Header
	assert.Equal(t, int64(http1Conn+http1Factor*http1Header+dataFactor*body), p.held.Load())
	_, err := server.Write([]byte("response"))
	require.NoError(t, err)
	assert.Equal(t, int64(http1Conn), p.held.Load())
	text := kittest.Scrape(t, p.tel)
	assert.Contains(t, text, "server_connections{server=\"test\"} 1\n")
	assert.Contains(t, text, "server_connections_held_bytes{server=\"test\"} 16384\n")

	require.NoError(t, server.Close())
	_ = server.Close() // a server may close twice
	assert.Zero(t, p.held.Load())
	assert.Empty(t, p.conns)
	assert.Empty(t, p.addrs)
}

// A connection that holds more than one may is closed.
func TestListener_LimitsOneConnection(t *testing.T) {
	p := listen(t, Options{Budget: 1 << 30, PerConn: http1Conn + 100*http1Factor})
	client, server := p.connect(t, "127.0.0.1")
	send(t, client, server, 100)
	assert.Len(t, p.conns, 1)
	send(t, client, server, 1)
	assert.Empty(t, p.conns)
	assert.Contains(t, kittest.Scrape(t, p.tel), "server_connections_evicted_total{server=\"test\"} 1\n")
}

// Beyond the budget the connection that holds most is closed, then the one whose
// address holds most, then the one that was without a response for longest.
func TestListener_EvictsTheWorst(t *testing.T) {
	froms := kittest.Loopbacks(t, 2)
	tests := map[string]func(t *testing.T, p *pair) (worst *conn){
		"holds most": func(t *testing.T, p *pair) *conn {
			client, server := p.connect(t, froms[0])
			p.connect(t, froms[0])
			send(t, client, server, 1000)
			return server
		},
		"address holds most": func(t *testing.T, p *pair) *conn {
			other, otherServer := p.connect(t, froms[1])
			send(t, other, otherServer, 100)
			_, worst := p.connect(t, froms[0])
			large, largeServer := p.connect(t, froms[0])
			send(t, large, largeServer, 10_000)
			time.Sleep(50 * time.Millisecond)               // so that the others are equally idle
			_, err := largeServer.Write([]byte("response")) // and this one is not
			require.NoError(t, err)
			send(t, large, largeServer, 10)
			return worst
		},
		"longest without a response": func(t *testing.T, p *pair) *conn {
			_, worst := p.connect(t, froms[0])
			_, served := p.connect(t, froms[0])
			time.Sleep(20 * time.Millisecond)
			_, err := served.Write([]byte("response"))
			require.NoError(t, err)
			return worst
		},
	}
	for name, prepare := range tests {
		t.Run(name, func(t *testing.T) {
			p := listen(t, Options{Budget: 1 << 30, PerConn: 1 << 30})
			worst := prepare(t, p)
			before := len(p.conns)
			p.o.Budget = p.held.Load() - 1
			p.enforce()
			assert.Len(t, p.conns, before-1)
			assert.True(t, worst.closed)
		})
	}
}

// A new connection is accepted although the budget is spent: an older one makes room.
func TestListener_AcceptsBeyondTheBudget(t *testing.T) {
	p := listen(t, Options{Budget: 3 * http1Conn, PerConn: 1 << 30})
	for range 20 {
		client, server := p.connect(t, "127.0.0.1")
		send(t, client, server, 1)
		_, err := server.Write([]byte("response"))
		require.NoError(t, err)
	}
	assert.LessOrEqual(t, len(p.conns), 3)
}
