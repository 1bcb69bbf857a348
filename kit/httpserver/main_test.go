package httpserver_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"example.com/tandem/kit/health"
	"example.com/tandem/kit/httpserver"
	"example.com/tandem/kit/instance"
	"example.com/tandem/kit/kittest"
	"example.com/tandem/kit/problem"
	"example.com/tandem/kit/telemetry"
)

func TestMain(m *testing.M) {
	if os.Getenv("TEST_SERVER") != "" {
		serveProcess()
	}
	goleak.VerifyTestMain(m)
}

// testTimeout is far more than any step of a test takes, unless it hangs.
const testTimeout = 30 * time.Second

// served is a running server under test.
type served struct {
	*httpserver.Server
	Tel    *telemetry.Telemetry
	Health *health.Health
	Log    *kittest.Buffer
	URL    string
	Done   chan error // receives the result of Serve
}

// serve starts a server with the given routes. It stops when the test ends.
func serve(t *testing.T, o httpserver.Options, routes func(s *httpserver.Server)) *served {
	t.Helper()
	log := &kittest.Buffer{}
	o.AddrVar, o.Addr = "HTTP_ADDR", "127.0.0.1:0"
	o.Telemetry, o.Health = kittest.Telemetry(t, log), health.New(instance.Instance{Service: "test"})
	s := &served{Server: httpserver.New(o), Tel: o.Telemetry, Health: o.Health, Log: log}
	if routes != nil {
		routes(s.Server)
	}
	s.start(t)
	s.Health.Ready()
	return s
}

func (s *served) start(t *testing.T) {
	t.Helper()
	require.NoError(t, s.Listen())
	s.URL, s.Done = "http://"+s.Addr().String(), make(chan error, 1)
	go func() { s.Done <- s.Serve() }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
		defer cancel()
		assert.NoError(t, s.Shutdown(ctx))
		assert.NoError(t, <-s.Done)
		if t.Failed() {
			t.Log(s.Log)
		}
	})
}

// client returns a client with a connection pool of its own.
func client(t *testing.T) *http.Client {
	t.Helper()
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: testTimeout}
}

// do sends a request, and returns the response and its body.
func do(t *testing.T, c *http.Client, method, url string, body io.Reader) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, body)
	require.NoError(t, err)
	resp, err := c.Do(req)
	require.NoError(t, err)
	defer resp.Body.Close() //nolint:errcheck // read whole below
	text, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return resp, string(text)
}

func get(t *testing.T, c *http.Client, url string) (*http.Response, string) {
	t.Helper()
	return do(t, c, http.MethodGet, url, nil)
}

// background sends a GET request in a goroutine. The channel receives its outcome.
func background(c *http.Client, url string) <-chan outcome {
	out := make(chan outcome, 1)
	go func() {
		resp, err := c.Get(url)
		if err != nil {
			out <- outcome{err: err}
			return
		}
		defer resp.Body.Close() //nolint:errcheck // read whole below
		body, err := io.ReadAll(resp.Body)
		out <- outcome{resp.StatusCode, string(body), err}
	}()
	return out
}

type outcome struct {
	status int
	body   string
	err    error
}

// dial opens a connection on which a test can send any bytes.
func (s *served) dial(t *testing.T) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", s.Addr().String())
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() }) // it may be closed
	require.NoError(t, conn.SetDeadline(time.Now().Add(testTimeout)))
	return conn
}

// raw sends the bytes of a request on a new connection, and returns the response and
// its body.
func (s *served) raw(t *testing.T, request string) (*http.Response, string) {
	t.Helper()
	conn := s.dial(t)
	go func() { _, _ = io.WriteString(conn, request) }() // the server may respond before it has read all bytes
	method, _, _ := strings.Cut(request, " ")
	resp, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: method})
	require.NoError(t, err)
	defer resp.Body.Close() //nolint:errcheck // read whole below
	text, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return resp, string(text)
}

// assertProblem asserts that the response is a problem with this status, and returns
// the problem.
func assertProblem(t *testing.T, resp *http.Response, body string, status int) problem.Problem {
	t.Helper()
	assert.Equal(t, status, resp.StatusCode)
	assert.Equal(t, problem.ContentType, resp.Header.Get("Content-Type"))
	assert.Equal(t, "nosniff", resp.Header.Get("X-Content-Type-Options"))
	var p problem.Problem
	require.NoError(t, json.Unmarshal([]byte(body), &p), body)
	assert.Equal(t, status, p.Status)
	assert.Equal(t, http.StatusText(status), p.Title)
	assert.NotEmpty(t, p.Detail)
	return p
}

// lines returns the log lines with the message msg. All lines must be JSON.
func (s *served) lines(t *testing.T, msg string) []map[string]any {
	t.Helper()
	var out []map[string]any
	for text := range strings.Lines(s.Log.String()) {
		var line map[string]any
		require.NoError(t, json.Unmarshal([]byte(text), &line), "%q", text)
		if line["msg"] == msg {
			out = append(out, line)
		}
	}
	return out
}

// line waits for the log line with the message msg, which must be the only one. The
// server logs a request after the client has the response.
func (s *served) line(t *testing.T, msg string) map[string]any {
	t.Helper()
	kittest.Eventually(t, func() bool { return strings.Contains(s.Log.String(), fmt.Sprintf(`"msg":%q`, msg)) }, "a log line "+msg)
	lines := s.lines(t, msg)
	require.Len(t, lines, 1)
	return lines[0]
}

// counts returns the number of requests that the metric has counted, by "method route
// code".
func (s *served) counts(t *testing.T) map[string]uint64 {
	t.Helper()
	families, err := s.Tel.Metrics.Gather()
	require.NoError(t, err)
	out := map[string]uint64{}
	for _, f := range families {
		if f.GetName() != "http_server_request_duration_seconds" {
			continue
		}
		for _, m := range f.GetMetric() {
			labels := map[string]string{}
			for _, l := range m.GetLabel() {
				labels[l.GetName()] = l.GetValue()
			}
			assert.Len(t, labels, 3)
			out[labels["method"]+" "+labels["route"]+" "+labels["code"]] = m.GetHistogram().GetSampleCount()
		}
	}
	return out
}

// awaitCounts waits until counts returns want.
func (s *served) awaitCounts(t *testing.T, want map[string]uint64) {
	t.Helper()
	var got map[string]uint64
	if !assert.Eventually(t, func() bool { got = s.counts(t); return assert.ObjectsAreEqual(want, got) }, testTimeout, 10*time.Millisecond) {
		assert.Equal(t, want, got)
	}
}

func hello(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello") }
