package cli_test

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"

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

func probe(t *testing.T, args ...string) (out string, err error) {
	t.Helper()
	var buf bytes.Buffer
	_, err = cli.Run[settings](t.Context(), "service-x", "", append([]string{"probe"}, args...), nil, &buf)
	return buf.String(), err
}

// named returns a name that stands for 127.0.0.1, and addr's port after it.
func named(t *testing.T, name, addr string) string {
	t.Helper()
	dns.Set(name, "127.0.0.1")
	_, port, err := net.SplitHostPort(addr)
	require.NoError(t, err)
	return name + ":" + port
}

// serveGRPC serves a grpc.health.v1 and returns its address.
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

// silent is the address of a listener that takes connections and never answers.
func silent(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0") // the kernel accepts for it
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, l.Close()) })
	return l.Addr().String()
}

func serveHTTP(t *testing.T, h http.HandlerFunc) string {
	t.Helper()
	server := httptest.NewServer(h)
	t.Cleanup(server.Close)
	return server.Listener.Addr().String()
}

// assertSteps asserts that each line of out matches its pattern and ends with a duration.
func assertSteps(t *testing.T, out string, patterns ...string) {
	t.Helper()
	lines := strings.Split(strings.TrimSpace(out), "\n")
	require.Len(t, lines, len(patterns), out)
	for i, p := range patterns {
		assert.Regexp(t, "^"+p+"$", lines[i])
	}
}

const took = ` \([0-9.]+(µs|ms|s)\)`

func TestEachStepOfAnHTTPProbeIsShown(t *testing.T) {
	addr := serveHTTP(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, r.Method+" "+r.Host+" "+r.URL.String()+" "+r.Header.Get("User-Agent")+"\n\n")
	})
	target := named(t, "web.probe.test", addr)
	out, err := probe(t, "http://"+target+"/health?x=1")
	require.NoError(t, err)
	assertSteps(t, out,
		`resolved  web\.probe\.test is 127\.0\.0\.1`+took,
		`connected to `+regexp.QuoteMeta(addr)+took,
		`answered  HTTP/1\.1 200 OK`+took,
		regexp.QuoteMeta("GET "+target+" /health?x=1 tandem-probe"),
	)
}

func TestEachStepOfAGRPCProbeIsShown(t *testing.T) {
	h := health.New(instance.Instance{})
	h.Ready()
	addr := serveGRPC(t, h.GRPC())
	target := named(t, "rpc.probe.test", addr)

	out, err := probe(t, "grpc://"+target)
	require.NoError(t, err)
	assertSteps(t, out,
		`resolved  rpc\.probe\.test is 127\.0\.0\.1`+took,
		`connected to `+regexp.QuoteMeta(addr)+took,
		`answered  gRPC health SERVING`+took,
	)

	h.SetNotReady(true)
	out, err = probe(t, "grpc://"+target)
	require.ErrorContains(t, err, "health NOT_SERVING: want SERVING")
	assert.Contains(t, out, "answered  gRPC health NOT_SERVING")
	assert.Equal(t, 1, lifecycle.ExitCode(err))
}

func TestAProbeThatFailsSaysHowAndAfterWhichStep(t *testing.T) {
	closed := "127.0.0.1:" + kittest.FreePort()
	status := func(code int) string {
		return serveHTTP(t, func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Location", "/"); w.WriteHeader(code) })
	}
	for _, c := range []struct {
		name  string
		args  []string
		err   string
		steps []string
	}{
		{"http, a name that no one knows", []string{"http://nobody.probe.test./"}, "probe: dns: ", nil},
		{"grpc, a name that no one knows", []string{"grpc://nobody.probe.test.:9090"}, "probe: dns: ", nil},
		{"http, nothing listens", []string{"http://" + named(t, "closed.probe.test", closed)}, "probe: refused: ", []string{"resolved .*"}},
		{"grpc, nothing listens", []string{"grpc://" + closed}, "probe: refused: ", []string{"resolved .*"}},
		{"http, no answer", []string{"-timeout", "200ms", "http://" + silent(t)}, "probe: timeout: ", []string{"resolved .*", "connected .*"}},
		{"grpc, no answer", []string{"-timeout=200ms", "grpc://" + silent(t)}, "probe: timeout: ", []string{"resolved .*", "connected .*"}},
		{"http, status 503", []string{"http://" + status(503)}, "status 503: want 2xx", []string{"resolved .*", "connected .*", "answered  HTTP/1.1 503 .*"}},
		{"http, a redirect is not followed", []string{"http://" + status(302)}, "status 302: want 2xx", []string{"resolved .*", "connected .*", "answered  HTTP/1.1 302 .*"}},
		{"grpc, a server without health", []string{"grpc://" + serveGRPC(t, nil)}, "probe: other: .*Unimplemented", []string{"resolved .*", "connected .*"}},
		{"https, a server that speaks none", []string{"https://" + status(200)}, "probe: other: tls: ", []string{"resolved .*", "connected .*"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			out, err := probe(t, c.args...)
			require.Error(t, err)
			assert.Regexp(t, c.err, err.Error())
			assert.Equal(t, 1, lifecycle.ExitCode(err))
			if c.steps == nil {
				assert.Empty(t, out)
				return
			}
			assertSteps(t, out, c.steps...)
		})
	}
}

func TestWrongUsageEndsWith2(t *testing.T) {
	for _, c := range []struct {
		name string
		args []string
		want string
	}{
		{"no URL", nil, "usage: probe"},
		{"two URLs", []string{"http://a", "http://b"}, "usage: probe"},
		{"an unknown flag", []string{"-fast", "http://a"}, "usage: probe"},
		{"a time-out that is none", []string{"-timeout", "3", "http://a"}, "usage: probe"},
		{"no time at all", []string{"-timeout", "0s", "http://a"}, "-timeout: want more than 0"},
		{"no scheme", []string{"service-b/health"}, "want http://HOST"},
		{"an unknown scheme", []string{"ftp://service-b"}, "want http://HOST"},
		{"no host", []string{"http:///health"}, "want http://HOST"},
		{"grpc without a port", []string{"grpc://service-b"}, "want http://HOST"},
		{"no URL at all", []string{"http://service b"}, "probe: "},
	} {
		t.Run(c.name, func(t *testing.T) {
			out, err := probe(t, c.args...)
			require.ErrorContains(t, err, c.want)
			assert.Equal(t, 2, lifecycle.ExitCode(err))
			assert.Empty(t, out)
		})
	}
}

func TestHelpIsNoError(t *testing.T) {
	out, err := probe(t, "-h")
	require.NoError(t, err)
	assert.True(t, strings.HasPrefix(out, "usage: probe"), out)
}

// hostileHealth is a health service whose error carries a terminal's control sequence.
type hostileHealth struct {
	grpc_health_v1.UnimplementedHealthServer
}

const evil = "\x1b]0;owned\a"

func TestNothingThatAPeerSaysSteersTheTerminal(t *testing.T) {
	statusLine := func() string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		done := make(chan struct{})
		go func() { // by hand, as net/http sends no such line
			defer close(done)
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = conn.Read(make([]byte, 4096)) // a request is shorter
			_, _ = io.WriteString(conn, "HTTP/1.1 500 "+evil+"\r\nContent-Length: 0\r\n\r\n")
			_ = conn.Close() // the probe says whether it was answered
		}()
		t.Cleanup(func() { _ = l.Close(); <-done })
		return l.Addr().String()
	}
	body := func(s string) string {
		return serveHTTP(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, s) })
	}
	for _, c := range []struct{ name, url, want string }{
		{"a body", "http://" + body("good\n"+evil), `"good\n\x1b]0;owned\a"`},
		{"a body that is no UTF-8", "http://" + body("\x9b2J"), "\uFFFD2J"},
		{"a body's tabs and lines stay", "http://" + body("a\tb\nc"), "a\tb\nc"},
		{"a status line", "http://" + statusLine(), `500 \x1b]0;owned\a"`},
		{"a gRPC status", "grpc://" + serveGRPC(t, hostileHealth{}), `\x1b]0;owned\a`},
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

func (hostileHealth) Check(context.Context, *grpc_health_v1.HealthCheckRequest) (*grpc_health_v1.HealthCheckResponse, error) {
	return nil, status.Error(codes.Internal, evil)
}
