package httpclient_test

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"example.com/tandem/kit/call"
	"example.com/tandem/kit/health"
	"example.com/tandem/kit/httpclient"
	"example.com/tandem/kit/httpserver"
	"example.com/tandem/kit/instance"
	"example.com/tandem/kit/kittest"
)

var names *kittest.DNS

func TestMain(m *testing.M) {
	names = kittest.UseDNS()
	dial := net.DefaultResolver.Dial
	net.DefaultResolver.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return &lateConn{UDPConn: conn.(*net.UDPConn)}, nil
	}
	goleak.VerifyTestMain(m, goleak.IgnoreCurrent()) // the DNS server stays
}

// newClient makes a client with defaults for the required options.
func newClient(t *testing.T, o httpclient.Options) *http.Client {
	t.Helper()
	if o.Telemetry == nil {
		o.Telemetry = kittest.Telemetry(t, io.Discard)
	}
	if o.Timeout == 0 {
		o.Timeout = time.Minute
	}
	client := httpclient.New(o)
	t.Cleanup(client.CloseIdleConnections)
	return client
}

// result is a call that has ended.
type result struct {
	call.Record
	status int
	body   string
	err    error
	class  call.Class // of err
}

func get(t *testing.T, client *http.Client, url string) result {
	t.Helper()
	return do(client, request(t, t.Context(), http.MethodGet, url, nil))
}

func request(t *testing.T, ctx context.Context, method, url string, body io.Reader) *http.Request {
	t.Helper()
	req, err := http.NewRequestWithContext(ctx, method, url, body)
	require.NoError(t, err)
	return req
}

func do(client *http.Client, req *http.Request) result {
	ctx, record := call.WithRecord(req.Context())
	resp, err := client.Do(req.WithContext(ctx))
	r := result{Record: *record, err: err, class: call.ClassOf(err)}
	if err == nil {
		body, err := io.ReadAll(resp.Body)
		r.status, r.body, r.err = resp.StatusCode, string(body), err
	}
	return r
}

// serve starts a server and counts its requests. The handler is given the number of
// the request, from 1.
func serve(t *testing.T, handler func(n int, w http.ResponseWriter, r *http.Request)) (url string, requests *atomic.Int64) {
	t.Helper()
	requests = new(atomic.Int64)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		handler(int(requests.Add(1)), w, r)
	}))
	t.Cleanup(s.Close)
	return s.URL, requests
}

// pod starts a server of package httpserver, with one route, at an address. It runs
// until stop is called or the test ends.
func pod(t *testing.T, addr string, maxAge time.Duration, handler http.HandlerFunc) (stop func()) {
	t.Helper()
	s := httpserver.New(httpserver.Options{
		AddrVar: "HTTP_ADDR", Addr: addr, MaxConnectionAge: maxAge,
		Telemetry: kittest.Telemetry(t, io.Discard), Health: health.New(instance.Instance{}),
	})
	s.API.Get("/", handler)
	require.NoError(t, s.Listen())
	served := make(chan error, 1)
	go func() { served <- s.Serve() }()
	stop = sync.OnceFunc(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		assert.NoError(t, s.Shutdown(ctx))
		assert.NoError(t, <-served)
	})
	t.Cleanup(stop)
	return stop
}

func ok(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") }

// together makes n calls, at most concurrency of them at a time.
func together(n, concurrency int, one func(i int)) {
	var wg sync.WaitGroup
	var next atomic.Int64
	for range concurrency {
		wg.Go(func() {
			for i := next.Add(1); i <= int64(n); i = next.Add(1) {
				one(int(i))
			}
		})
	}
	wg.Wait()
}

// unused returns an address at which nothing listens.
func unused(t *testing.T) (host, port string) {
	t.Helper()
	return kittest.Loopbacks(t, 1)[0], kittest.FreePort()
}

func join(host, port string) string { return net.JoinHostPort(host, port) }

// clusterIP starts a proxy that forwards each connection to the next backend, like a
// ClusterIP (where kube-proxy chooses at random). Call it before newClient, so that
// the proxy stops after the client.
func clusterIP(t *testing.T, backends ...string) (url string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	var open sync.WaitGroup
	open.Go(func() {
		for i := 0; ; i++ {
			client, err := l.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", strings.TrimPrefix(backends[i%len(backends)], "http://"))
			if !assert.NoError(t, err) {
				return
			}
			for _, direction := range [][2]net.Conn{{client, server}, {server, client}} {
				open.Go(func() {
					_, _ = io.Copy(direction[0], direction[1])
					_, _ = client.Close(), server.Close()
				})
			}
		}
	})
	t.Cleanup(func() {
		assert.NoError(t, l.Close())
		open.Wait()
	})
	return "http://" + l.Addr().String()
}

// dnsLate delays the responses of the DNS server: a time.Duration.
var dnsLate atomic.Int64

// lateConn is a connection to the DNS server that dnsLate delays.
type lateConn struct {
	*net.UDPConn
	deadline time.Time
}

func (c *lateConn) SetDeadline(at time.Time) error {
	c.deadline = at
	return c.UDPConn.SetDeadline(at)
}

func (c *lateConn) Read(p []byte) (int, error) {
	late := time.Duration(dnsLate.Load())
	if left := time.Until(c.deadline); left < late {
		time.Sleep(left)
		return 0, os.ErrDeadlineExceeded
	}
	time.Sleep(late)
	return c.UDPConn.Read(p)
}
