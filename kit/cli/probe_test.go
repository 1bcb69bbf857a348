package cli_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"example.com/tandem/kit/cli"
	"example.com/tandem/kit/health"
	"example.com/tandem/kit/instance"
	"example.com/tandem/kit/kittest"
	"example.com/tandem/kit/lifecycle"
)

var dns *kittest.DNS

func TestMain(m *testing.M) {
	dns = kittest.UseDNS()
	goleak.VerifyTestMain(m, goleak.IgnoreCurrent()) // the DNS server stays
}

// probe runs the subcommand probe.
func probe(t *testing.T, args ...string) (out string, err error) {
	t.Helper()
	var buf bytes.Buffer
	_, err = cli.Run[settings](t.Context(), "service-x", "", append([]string{"probe"}, args...), nil, &buf)
	return buf.String(), err
}

// named makes name resolve to 127.0.0.1, and returns it with the port of addr.
func named(t *testing.T, name, addr string) string {
	t.Helper()
	dns.Set(name, "127.0.0.1")
	_, port, err := net.SplitHostPort(addr)
	require.NoError(t, err)
	return name + ":" + port
}

// serveGRPC serves gRPC, with grpc.health.v1 unless h is nil, and returns its address.
func serveGRPC(t *testing.T, h grpc_health_v1.HealthServer) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	server := grpc.NewServer()
	if h != nil {
		grpc_health_v1.RegisterHealthServer(server, h)
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	t.Cleanup(func() {
		server.Stop()
		require.NoError(t, <-served)
	})
	return l.Addr().String()
}

// silent returns the address of a listener that never responds.
func silent(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0") // the kernel accepts its connections
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, l.Close()) })
	return l.Addr().String()
}

// unresponsive returns a loopback address where a connection request gets no response,
// as behind a NetworkPolicy: the address of a listener whose backlog is full.
func unresponsive(t *testing.T) string {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skip("only Linux drops connection requests when the backlog is full")
	}
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, syscall.Close(fd)) })
	require.NoError(t, syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
	require.NoError(t, syscall.Listen(fd, 0)) // room for one connection
	bound, err := syscall.Getsockname(fd)
	require.NoError(t, err)
	addr := fmt.Sprintf("127.0.0.1:%d", bound.(*syscall.SockaddrInet4).Port)
	conn, err := net.Dial("tcp", addr)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, conn.Close()) })
	return addr
}

// failingHealth is a health service that returns an error.
type failingHealth struct {
	grpc_health_v1.UnimplementedHealthServer
	code    codes.Code
	message string
}

func (h failingHealth) Check(context.Context, *grpc_health_v1.HealthCheckRequest) (*grpc_health_v1.HealthCheckResponse, error) {
	return nil, status.Error(h.code, h.message)
}

// resets returns the address of a server that resets each connection when the first
// bytes arrive, as a sidecar does to plaintext if its mutual TLS is STRICT.
func resets(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = conn.Read(make([]byte, 1))
			_ = conn.(*net.TCPConn).SetLinger(0) // Close sends RST
			_ = conn.Close()
		}
	}()
	t.Cleanup(func() {
		require.NoError(t, l.Close())
		<-done
	})
	return l.Addr().String()
}

// serveHTTP serves h and returns its address.
func serveHTTP(t *testing.T, h http.HandlerFunc) string {
	t.Helper()
	server := httptest.NewServer(h)
	t.Cleanup(server.Close)
	return server.Listener.Addr().String()
}

// serveHTTPS serves with a certificate that the system does not trust, and returns the
// address.
func serveHTTPS(t *testing.T) string {
	t.Helper()
	server := httptest.NewUnstartedServer(http.NotFoundHandler())
	server.Config.ErrorLog = log.New(io.Discard, "", 0) // failed handshakes
	server.StartTLS()
	t.Cleanup(server.Close)
	return server.Listener.Addr().String()
}

// assertSteps asserts that each line of out matches its pattern.
func assertSteps(t *testing.T, out string, patterns ...string) {
	t.Helper()
	lines := strings.Split(strings.TrimSpace(out), "\n")
	require.Len(t, lines, len(patterns), out)
	for i, p := range patterns {
		assert.Regexp(t, "^"+p+"$", lines[i])
	}
}

// took matches the duration at the end of a step.
const took = ` \([0-9.]+(µs|ms|s)\)`

func TestProbe_PrintsHTTPSteps(t *testing.T) {
	addr := serveHTTP(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, r.Method+" "+r.Host+" "+r.URL.String()+" "+r.Header.Get("User-Agent")+"\n\n")
	})
	target := named(t, "web.probe.test", addr)
	out, err := probe(t, "http://"+target+"/health?x=1")
	require.NoError(t, err)
	assertSteps(t, out,
		`resolved  web\.probe\.test is 127\.0\.0\.1`+took,
		`connected to `+regexp.QuoteMeta(addr)+took,
		`received  HTTP/1\.1 200 OK`+took,
		regexp.QuoteMeta("GET "+target+" /health?x=1 tandem-probe"),
	)
}

func TestProbe_PrintsGRPCSteps(t *testing.T) {
	h := health.New(instance.Instance{})
	h.Ready()
	addr := serveGRPC(t, h.GRPC())
	target := named(t, "rpc.probe.test", addr)

	out, err := probe(t, "grpc://"+target)
	require.NoError(t, err)
	assertSteps(t, out,
		`resolved  rpc\.probe\.test is 127\.0\.0\.1`+took,
		`connected to `+regexp.QuoteMeta(addr)+took,
		`received  gRPC health SERVING`+took,
	)

	h.SetNotReady(true)
	out, err = probe(t, "grpc://"+target)
	require.ErrorContains(t, err, "health NOT_SERVING: want SERVING")
	assert.Contains(t, out, "received  gRPC health NOT_SERVING")
	assert.Equal(t, 1, lifecycle.ExitCode(err))
}

// A probe that fails prints the steps before the failure, and returns an error with
// the class of the failure and, where there is more to say, advice on a second line.
func TestProbe_FailureHasClassAndAdvice(t *testing.T) {
	closed := "127.0.0.1:" + kittest.FreePort()
	_, closedPort, _ := net.SplitHostPort(closed)
	status := func(code int) string {
		return serveHTTP(t, func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Location", "/"); w.WriteHeader(code) })
	}
	httpAddr, grpcAddr := status(200), serveGRPC(t, nil)
	deniedGRPC := serveGRPC(t, failingHealth{code: codes.PermissionDenied, message: "RBAC: access denied"})
	const resolved, connected = "resolved .*", "connected .*"
	for _, c := range []struct {
		name      string
		args      []string
		namespace string // POD_NAMESPACE
		err       string // pattern of the error's first line
		advice    string // part of its second line; empty if there is none
		steps     []string
	}{
		{
			name:   "http, unknown name",
			args:   []string{"http://unknown.probe.test./"},
			err:    "probe: dns: lookup .*no such host",
			advice: "check its spelling and namespace",
		},
		{
			name:   "grpc, unknown name",
			args:   []string{"grpc://unknown.probe.test.:9090"},
			err:    "probe: dns: lookup .*no such host",
			advice: "check its spelling and namespace",
		},
		{
			name:   "unknown short name",
			args:   []string{"http://service-c/"},
			err:    "probe: dns: lookup .*no such host",
			advice: "the name has no address; did you mean service-c.NAMESPACE? A short name resolves only in the caller's own namespace",
		},
		{
			name:      "unknown short name in a pod",
			args:      []string{"http://service-c/"},
			namespace: "tandem",
			err:       "probe: dns: lookup .*no such host",
			advice:    "the name has no address in namespace tandem; did you mean service-c.NAMESPACE?",
		},
		{
			name:   "http, nothing listens",
			args:   []string{"http://" + named(t, "closed.probe.test", closed)},
			err:    "probe: refused: .*connection refused",
			advice: "nothing listens on port " + closedPort + " of closed.probe.test",
			steps:  []string{resolved},
		},
		{
			name:   "grpc, nothing listens",
			args:   []string{"grpc://" + closed},
			err:    "probe: refused: .*connection refused",
			advice: "a headless name takes the pod's port",
			steps:  []string{resolved},
		},
		{
			name:   "http, no response",
			args:   []string{"-timeout", "200ms", "http://" + silent(t)},
			err:    "probe: timeout: ",
			advice: "connected, but no response in time",
			steps:  []string{resolved, connected},
		},
		{
			name:   "grpc, no response",
			args:   []string{"-timeout=200ms", "grpc://" + silent(t)},
			err:    "probe: timeout: ",
			advice: "connected, but no response in time",
			steps:  []string{resolved, connected},
		},
		{
			name:  "http, status 503",
			args:  []string{"http://" + status(503)},
			err:   "status 503: want 2xx",
			steps: []string{resolved, connected, "received  HTTP/1.1 503 .*"},
		},
		{
			name:  "http, redirects are not followed",
			args:  []string{"http://" + status(302)},
			err:   "status 302: want 2xx",
			steps: []string{resolved, connected, "received  HTTP/1.1 302 .*"},
		},
		{
			name:   "http, denied",
			args:   []string{"http://" + status(403)},
			err:    "probe: denied: status 403: want 2xx",
			advice: "does not list this pod's service account",
			steps:  []string{resolved, connected, "received  HTTP/1.1 403 .*"},
		},
		{
			name:   "grpc, denied",
			args:   []string{"grpc://" + deniedGRPC},
			err:    "probe: denied: .*RBAC: access denied",
			advice: "does not list this pod's service account",
			steps:  []string{resolved, connected},
		},
		{
			name:   "http, connection reset",
			args:   []string{"http://" + resets(t)},
			err:    "probe: unavailable: .*connection reset by peer",
			advice: "run the check from a pod that is in the mesh",
			steps:  []string{resolved, connected},
		},
		{
			name:   "grpc, connection reset",
			args:   []string{"grpc://" + resets(t)},
			err:    "probe: unavailable: .*(connection reset by peer|broken pipe)", // read or write
			advice: "run the check from a pod that is in the mesh",
			steps:  []string{resolved, connected},
		},
		{
			name:  "https, connection reset",
			args:  []string{"https://" + resets(t)},
			err:   "probe: unavailable: .*connection reset by peer",
			steps: []string{resolved, connected},
		},
		{
			name:   "grpc, server without health",
			args:   []string{"grpc://" + grpcAddr},
			err:    "probe: other: .*Unimplemented",
			advice: "does not serve grpc.health.v1",
			steps:  []string{resolved, connected},
		},
		{
			name:   "http to a gRPC port",
			args:   []string{"http://" + grpcAddr + "/health"},
			err:    "probe: other: .*malformed HTTP",
			advice: "does not speak HTTP/1. If it is a gRPC port, use grpc://" + grpcAddr,
			steps:  []string{resolved, connected},
		},
		{
			name:   "grpc to an HTTP port",
			args:   []string{"grpc://" + httpAddr},
			err:    "probe: unavailable: .*frame too large",
			advice: "does not speak gRPC. If it is an HTTP port, use http://" + httpAddr + "/health",
			steps:  []string{resolved, connected},
		},
		{
			name:  "https, unknown certificate authority",
			args:  []string{"https://" + serveHTTPS(t)},
			err:   "probe: other: tls: .*certificate",
			steps: []string{resolved, connected},
		},
		{
			name:  "https to an HTTP port",
			args:  []string{"https://" + httpAddr},
			err:   "probe: other: tls: ",
			steps: []string{resolved, connected},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			assertFailure(t, map[string]string{"POD_NAMESPACE": c.namespace}, c.args, c.err, c.advice, c.steps)
		})
	}
}

// Of a long body only the start is read, even if the server goes on sending.
func TestProbe_ReadsStartOfBody(t *testing.T) {
	addr := serveHTTP(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, strings.Repeat("x", 2000))
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	})
	start := time.Now()
	out, err := probe(t, "-timeout=20s", "http://"+addr)
	require.NoError(t, err)
	assertSteps(t, out, "resolved .*", "connected .*", "received .*", strings.Repeat("x", 1024))
	assert.Less(t, time.Since(start), 10*time.Second)
}

// assertFailure runs probe with args. It asserts that the printed steps match steps, the
// first line of the error errPattern, and that its second line contains advice, or is
// absent if advice is empty.
func assertFailure(t *testing.T, environ map[string]string, args []string, errPattern, advice string, steps []string) {
	t.Helper()
	_, out, err := runIn(t, environ, append([]string{"probe"}, args...)...)
	require.Error(t, err)
	assert.Equal(t, 1, lifecycle.ExitCode(err))
	first, second, hasAdvice := strings.Cut(err.Error(), "\n")
	assert.Regexp(t, errPattern, first)
	assert.Equal(t, advice != "", hasAdvice, err.Error())
	if hasAdvice {
		assert.Regexp(t, "^hint: .*"+regexp.QuoteMeta(advice), second)
	}
	if steps == nil {
		assert.Empty(t, out)
		return
	}
	assertSteps(t, out, steps...)
}

// A server that fails, and one that does not respond, get different advice.
func TestProbe_AdviceOnDNSFailure(t *testing.T) {
	dns.Break(true)
	defer dns.Break(false)
	args := []string{"http://service-b"}
	assertFailure(t, nil, args, "probe: dns: .*server misbehaving", "the DNS server failed", nil)

	silent, working := silentUDP(t), net.DefaultResolver
	defer func() { net.DefaultResolver = working }()
	net.DefaultResolver = &net.Resolver{
		PreferGo: true,
		Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "udp", silent)
		},
	}
	assertFailure(t, nil, append([]string{"-timeout=200ms"}, args...), "probe: dns: .*i/o timeout", "allow port 53", nil)
}

// silentUDP returns the address of a UDP socket that never responds.
func silentUDP(t *testing.T) string {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, conn.Close()) })
	return conn.LocalAddr().String()
}

func TestProbe_AdviceOnConnectTimeout(t *testing.T) {
	for _, scheme := range []string{"http://", "grpc://"} {
		args := []string{"-timeout=200ms", scheme + unresponsive(t)}
		assertFailure(t, nil, args, "probe: timeout: ", "a NetworkPolicy drops it", []string{"resolved .*"})
	}
}

func TestProbe_WrongUsageExitsWith2(t *testing.T) {
	for _, c := range []struct {
		name string
		args []string
		want string
	}{
		{name: "no URL", args: nil, want: "usage: probe"},
		{name: "two URLs", args: []string{"http://a", "http://b"}, want: "usage: probe"},
		{name: "unknown flag", args: []string{"-fast", "http://a"}, want: "usage: probe"},
		{name: "timeout without a unit", args: []string{"-timeout", "3", "http://a"}, want: "usage: probe"},
		{name: "timeout of zero", args: []string{"-timeout", "0s", "http://a"}, want: "-timeout: want more than 0"},
		{name: "no scheme", args: []string{"service-b/health"}, want: "want http://HOST"},
		{name: "unknown scheme", args: []string{"ftp://service-b"}, want: "want http://HOST"},
		{name: "no host", args: []string{"http:///health"}, want: "want http://HOST"},
		{name: "grpc without a port", args: []string{"grpc://service-b"}, want: "want http://HOST"},
		{name: "invalid URL", args: []string{"http://service b"}, want: "probe: "},
	} {
		t.Run(c.name, func(t *testing.T) {
			out, err := probe(t, c.args...)
			require.ErrorContains(t, err, c.want)
			assert.Equal(t, 2, lifecycle.ExitCode(err))
			assert.Empty(t, out)
		})
	}
}

func TestProbe_HelpIsNoError(t *testing.T) {
	out, err := probe(t, "-h")
	require.NoError(t, err)
	assert.True(t, strings.HasPrefix(out, "usage: probe"), out)
}

// controlSequence sets the title of a terminal.
const controlSequence = "\x1b]0;owned\a"

// Text from the server is quoted if it contains control characters.
func TestProbe_QuotesControlCharacters(t *testing.T) {
	statusLine := func() string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		done := make(chan struct{})
		go func() { // net/http would not send such a status line
			defer close(done)
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = conn.Read(make([]byte, 4096)) // enough for the request
			_, _ = io.WriteString(conn, "HTTP/1.1 500 "+controlSequence+"\r\nContent-Length: 0\r\n\r\n")
			_ = conn.Close() // the output shows whether it was received
		}()
		t.Cleanup(func() { _ = l.Close(); <-done })
		return l.Addr().String()
	}
	body := func(s string) string {
		return serveHTTP(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, s) })
	}
	for _, c := range []struct{ name, url, want string }{
		{name: "body", url: "http://" + body("good\n"+controlSequence), want: `"good\n\x1b]0;owned\a"`},
		{name: "body that is not UTF-8", url: "http://" + body("\x9b2J"), want: "\uFFFD2J"},
		{name: "tabs and lines of a body are kept", url: "http://" + body("a\tb\nc"), want: "a\tb\nc"},
		{name: "status line", url: "http://" + statusLine(), want: `500 \x1b]0;owned\a"`},
		{name: "gRPC status", url: "grpc://" + serveGRPC(t, failingHealth{code: codes.Internal, message: controlSequence}), want: `\x1b]0;owned\a`},
	} {
		t.Run(c.name, func(t *testing.T) {
			out, err := probe(t, c.url)
			if err != nil {
				out += err.Error()
			}
			assert.Contains(t, out, c.want)
			for _, r := range strings.ReplaceAll(strings.ReplaceAll(out, "\n", ""), "\t", "") {
				assert.False(t, r < ' ' || r >= 0x7f && r < 0xa0, "control character %q in %q", r, out)
			}
		})
	}
}
