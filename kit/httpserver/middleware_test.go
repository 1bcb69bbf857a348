package httpserver_test

import (
	"bufio"
	"cmp"
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/trace"

	"example.com/tandem/kit/fault"
	"example.com/tandem/kit/httpserver"
	"example.com/tandem/kit/kittest"
	"example.com/tandem/kit/limiter"
)

// read responds with the length of the body.
func read(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	_, _ = fmt.Fprintf(w, "%d bytes %v", len(body), err)
}

// The response to a request that is refused is a problem, which has a trace id and says
// what would be valid.
func TestServer_RefusalsAreProblems(t *testing.T) {
	t.Parallel()
	s := serve(t, httpserver.Options{}, func(s *httpserver.Server) {
		s.API.Get("/things", hello)
		s.API.Put("/things", read)
		s.API.Post("/orders", read)
		s.API.Get("/things/{id}", hello)
	})
	const (
		noRoute  = "no route for this path"
		noBody   = "GET requests must not have a body"
		tooLarge = "request line and headers exceed 16384 bytes"
	)
	long := strings.Repeat("x", 16<<10)
	for name, tt := range map[string]struct {
		request string // method and path
		host    string // "" is "test"
		headers string // additional lines
		body    string
		status  int
		detail  string // "" is the list of allowed methods
		allow   string
	}{
		"unknown path":           {request: "GET /nothing", status: 404, detail: noRoute},
		"method not allowed":     {request: "DELETE /things", status: 405, allow: "GET, HEAD, PUT"},
		"HEAD without GET":       {request: "HEAD /orders", status: 405, allow: "POST"},
		"not allowed by pattern": {request: "POST /things/a%2Fb", headers: "Content-Length: 0\r\n", status: 405, allow: "GET, HEAD"},
		"unknown method":         {request: "BREW /things", status: 405, allow: "GET, HEAD, PUT"},
		"unknown method, path":   {request: "BREW /nothing", status: 404, detail: noRoute},
		"GET with a body":        {request: "GET /things", headers: "Content-Length: 1\r\n", body: "x", status: 400, detail: noBody},
		"GET with a chunked body": {
			request: "GET /things",
			headers: "Transfer-Encoding: chunked\r\n",
			body:    "1\r\nx\r\n0\r\n\r\n",
			status:  400,
			detail:  noBody,
		},
		"HEAD with a body": {request: "HEAD /things", headers: "Content-Length: 1\r\n", body: "x", status: 400},
		"large Content-Length": {
			request: "PUT /things",
			headers: "Content-Length: 65537\r\n",
			status:  413,
			detail:  "the body exceeds 65536 bytes",
		},
		"invalid chunk": {
			request: "PUT /things",
			headers: "Transfer-Encoding: chunked\r\n",
			body:    "x\r\n",
			status:  400,
			detail:  "read the body: invalid byte in chunk length",
		},
		"long host":    {request: "GET /things", host: long, status: 431, detail: tooLarge},
		"long method":  {request: long + " /things", status: 431, detail: tooLarge},
		"long path":    {request: "GET /" + long, status: 431, detail: tooLarge},
		"long header":  {request: "GET /things", headers: "X: " + long + "\r\n", status: 431, detail: tooLarge},
		"many headers": {request: "GET /things", headers: strings.Repeat("X: y\r\n", 3<<10), status: 431, detail: tooLarge},
	} {
		t.Run(name, func(t *testing.T) {
			resp, body := s.raw(t, tt.request+" HTTP/1.1\r\nHost: "+cmp.Or(tt.host, "test")+"\r\n"+tt.headers+"\r\n"+tt.body)
			assert.Equal(t, tt.allow, resp.Header.Get("Allow"))
			if strings.HasPrefix(tt.request, "HEAD") { // its response has no body
				assert.Equal(t, tt.status, resp.StatusCode)
				assert.Empty(t, body)
				return
			}
			p := assertProblem(t, resp, body, tt.status)
			assert.Equal(t, cmp.Or(tt.detail, "allowed methods: "+tt.allow), p.Detail)
			assert.Len(t, p.TraceID, 32)
		})
	}
}

// Requests at the limits are served.
func TestServer_ServesUpToTheLimits(t *testing.T) {
	t.Parallel()
	s := serve(t, httpserver.Options{}, func(s *httpserver.Server) {
		s.API.Get("/things", hello)
		s.API.Put("/things", read)
	})
	const head = " HTTP/1.1\r\nHost: test\r\n"
	longest := strings.Repeat("x", 16<<10-len("GET/thingstest")-len("X: \r\n"))
	for name, tt := range map[string]struct{ request, want string }{
		"empty chunked body": {
			request: "GET /things" + head + "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
			want:    "hello",
		},
		"largest headers": {request: "GET /things" + head + "X: " + longest + "\r\n\r\n", want: "hello"},
		"largest body": {
			request: "PUT /things" + head + "Content-Length: 65536\r\n\r\n" + strings.Repeat("x", 64<<10),
			want:    "65536 bytes <nil>",
		},
		"HEAD": {request: "HEAD /things" + head + "\r\n", want: ""},
	} {
		t.Run(name, func(t *testing.T) {
			resp, body := s.raw(t, tt.request)
			assert.Equal(t, 200, resp.StatusCode)
			assert.Equal(t, tt.want, body)
			assert.Equal(t, "nosniff", resp.Header.Get("X-Content-Type-Options"))
		})
	}
}

// A body without a Content-Length is also refused beyond the limit.
func TestServer_LimitsChunkedBodies(t *testing.T) {
	t.Parallel()
	s := serve(t, httpserver.Options{MaxBody: 10}, func(s *httpserver.Server) { s.API.Put("/things", read) })
	put := func(size int) (*http.Response, string) {
		// The client sends a reader of unknown length in chunks.
		return do(t, client(t), http.MethodPut, s.URL+"/things", io.MultiReader(strings.NewReader(strings.Repeat("x", size))))
	}
	_, body := put(10)
	assert.Equal(t, "10 bytes <nil>", body)
	resp, body := put(11)
	assertProblem(t, resp, body, 413)
}

// A body that arrives slowly does not count towards the concurrency limit.
func TestServer_SlowBodyIsNotInFlight(t *testing.T) {
	t.Parallel()
	s := serve(t, httpserver.Options{Limiter: limiter.New(1, prometheus.NewRegistry())}, func(s *httpserver.Server) {
		s.API.Put("/things", read)
		s.API.Get("/hello", hello)
	})
	for range 10 {
		conn := s.dial(t)
		_, err := io.WriteString(conn, "PUT /things HTTP/1.1\r\nHost: test\r\nContent-Length: 10\r\n\r\nhalf")
		require.NoError(t, err)
	}
	for range 100 { // the server reads the halves of the bodies in the meantime
		resp, _ := get(t, client(t), s.URL+"/hello")
		require.Equal(t, 200, resp.StatusCode)
		time.Sleep(time.Millisecond)
	}
}

// The response to a body that does not arrive within readTimeout is a 408, and closes
// the connection.
func TestServer_SlowBodyTimesOut(t *testing.T) {
	t.Parallel() // takes 15 s
	s := serve(t, httpserver.Options{}, func(s *httpserver.Server) { s.API.Put("/things", read) })
	resp, body := s.raw(t, "PUT /things HTTP/1.1\r\nHost: test\r\nContent-Length: 10\r\n\r\nhalf")
	assertProblem(t, resp, body, 408)
	assert.True(t, resp.Close)
}

// Beyond netHTTPMaxHeader, net/http itself refuses a request before it reaches middleware.
func TestServer_RefusesHugeHeaders(t *testing.T) {
	t.Parallel()
	reached := make(chan struct{}, 1)
	s := serve(t, httpserver.Options{}, func(s *httpserver.Server) {
		s.API.Get("/things", func(http.ResponseWriter, *http.Request) { reached <- struct{}{} })
	})
	resp, body := s.raw(t, "GET /things HTTP/1.1\r\nHost: test\r\nX: "+strings.Repeat("x", 80<<10)+"\r\n\r\n")
	assert.Equal(t, 431, resp.StatusCode)
	assert.Equal(t, "text/plain; charset=utf-8", resp.Header.Get("Content-Type"))
	assert.Equal(t, "431 Request Header Fields Too Large", body)
	assert.True(t, resp.Close)
	assert.Empty(t, s.counts(t), "the request reached no middleware")
	assert.Empty(t, reached)
}

// The response to a request whose handler panics is a 500 without the headers that the
// handler set. The panic is logged with its stack.
func TestServer_PanicIsA500(t *testing.T) {
	t.Parallel()
	s := serve(t, httpserver.Options{}, func(s *httpserver.Server) {
		s.API.Get("/panic", func(w http.ResponseWriter, _ *http.Request) {
			for _, name := range []string{"ETag", "Last-Modified", "Expires", "Cache-Control", "Content-Encoding", "Set-Cookie"} {
				w.Header().Set(name, "x")
			}
			w.Header().Set("Content-Length", "5")
			panic("boom")
		})
		s.API.Get("/hello", hello)
	})
	c := client(t)
	resp, body := get(t, c, s.URL+"/panic")
	p := assertProblem(t, resp, body, 500)
	assert.Equal(t, "internal error; see the server log", p.Detail)
	for _, name := range []string{"ETag", "Last-Modified", "Expires", "Cache-Control", "Content-Encoding", "Set-Cookie"} {
		assert.Empty(t, resp.Header.Get(name), name)
	}

	line := s.line(t, "panic")
	assert.Equal(t, "ERROR", line["level"])
	assert.Equal(t, "boom", line["error"])
	assert.Contains(t, line["stack"], "TestServer_PanicIsA500", "the stack names the handler")
	assert.Equal(t, p.TraceID, line["trace_id"])
	s.awaitCounts(t, map[string]uint64{"GET /panic 500": 1})

	resp, _ = get(t, c, s.URL+"/hello")
	assert.Equal(t, 200, resp.StatusCode, "the server still serves")
}

// A handler that panics or aborts during a response closes the connection, and the
// request is logged and counted as 500.
func TestServer_LogsAbortedResponseAs500(t *testing.T) {
	t.Parallel()
	for name, value := range map[string]any{"panic": "boom", "abort": http.ErrAbortHandler} {
		t.Run(name, func(t *testing.T) {
			s := serve(t, httpserver.Options{}, func(s *httpserver.Server) {
				s.API.Get("/panic", func(w http.ResponseWriter, _ *http.Request) {
					_, _ = io.WriteString(w, "half")
					_ = http.NewResponseController(w).Flush()
					panic(value)
				})
			})
			out := <-background(client(t), s.URL+"/panic")
			assert.Equal(t, 200, out.status)
			assert.Equal(t, "half", out.body)
			require.ErrorIs(t, out.err, io.ErrUnexpectedEOF, "the client detects that the response is not complete")

			assert.InDelta(t, 500, s.line(t, "http")["status"], 0)
			s.awaitCounts(t, map[string]uint64{"GET /panic 500": 1})
			assert.Len(t, s.lines(t, "panic"), map[string]int{"panic": 1, "abort": 0}[name])
		})
	}
}

// A request whose client disconnects during the response is logged and counted as 499.
func TestServer_LogsDisconnectAs499(t *testing.T) {
	t.Parallel()
	for name, handle := range map[string]http.HandlerFunc{
		"while the handler writes": func(w http.ResponseWriter, _ *http.Request) {
			for {
				if _, err := w.Write(make([]byte, 64<<10)); err != nil {
					return
				}
			}
		},
		"while the handler waits": func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.WriteString(w, "half")
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := serve(t, httpserver.Options{}, func(s *httpserver.Server) { s.API.Get("/long", handle) })
			conn := s.dial(t)
			_, err := io.WriteString(conn, "GET /long HTTP/1.1\r\nHost: test\r\n\r\n")
			require.NoError(t, err)
			_, err = conn.Read(make([]byte, 1))
			require.NoError(t, err)
			require.NoError(t, conn.Close())
			s.awaitCounts(t, map[string]uint64{"GET /long 499": 1})
			assert.InDelta(t, 499, s.line(t, "http")["status"], 0)
		})
	}
}

// A request whose client disconnects after the whole response is counted as 200, even
// if the handler has not returned yet.
func TestServer_LogsCompleteResponseAs200(t *testing.T) {
	t.Parallel()
	s := serve(t, httpserver.Options{}, func(s *httpserver.Server) {
		s.API.Get("/whole", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "5")
			_, _ = io.WriteString(w, "hello")
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		})
	})
	conn := s.dial(t)
	_, err := io.WriteString(conn, "GET /whole HTTP/1.1\r\nHost: test\r\n\r\n")
	require.NoError(t, err)
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	require.NoError(t, err)
	_, err = io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.NoError(t, conn.Close())
	s.awaitCounts(t, map[string]uint64{"GET /whole 200": 1})
}

// Values that a client sends are truncated to 256 bytes in log lines.
func TestLog_TruncatesValues(t *testing.T) {
	t.Parallel()
	s := serve(t, httpserver.Options{}, nil)
	_, _ = s.raw(t, strings.Repeat("M", 10<<10)+" /"+strings.Repeat("p", 1<<10)+" HTTP/1.1\r\nHost: test\r\n\r\n")
	line := s.line(t, "http")
	assert.Equal(t, strings.Repeat("M", 256), line["method"])
	assert.Equal(t, "/"+strings.Repeat("p", 255), line["path"])
}

// The header X-Forwarded-For is logged if there is one. If it is long, its end is logged,
// because the gateway adds the last entry.
func TestLog_ForwardedFor(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		headers string
		want    any
	}{
		"none":    {headers: "", want: nil},
		"one":     {headers: "X-Forwarded-For: 192.0.2.1\r\n", want: "192.0.2.1"},
		"several": {headers: "X-Forwarded-For: a, b\r\nX-Forwarded-For: 192.0.2.1\r\n", want: "a, b, 192.0.2.1"},
		"long": {
			headers: "X-Forwarded-For: " + strings.Repeat("x", 1000) + ", 192.0.2.1\r\n",
			want:    strings.Repeat("x", 245) + ", 192.0.2.1",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := serve(t, httpserver.Options{}, nil)
			_, _ = s.raw(t, "GET / HTTP/1.1\r\nHost: test\r\n"+tt.headers+"\r\n")
			assert.Equal(t, tt.want, s.line(t, "http")["forwarded_for"])
		})
	}
}

// A path cannot add a log line, or control characters to one.
func TestLog_CannotBeForged(t *testing.T) {
	t.Parallel()
	s := serve(t, httpserver.Options{}, nil)
	// Terminals take \u009b for \x1b[.
	forged := "/x\n{\"level\":\"ERROR\",\"msg\":\"http\"}\r\x1b[31m\x00\u2028\x7f\u009b31m"
	get(t, client(t), s.URL+"/x%0A%7B%22level%22:%22ERROR%22,%22msg%22:%22http%22%7D%0D%1B%5B31m%00%E2%80%A8%7F%C2%9B31m")

	line := s.line(t, "http") // fails if there are two, or if a line is not JSON
	assert.Equal(t, forged, line["path"])
	assert.Equal(t, "INFO", line["level"])
	for _, r := range strings.ReplaceAll(s.Log.String(), "\n", "") {
		assert.False(t, unicode.IsControl(r), "the log has the control character %U", r)
	}
}

// A request is logged at INFO, without its query. A probe is not logged, and a response
// of status 500 or more is logged at WARN.
func TestLog_DescribesRequest(t *testing.T) {
	t.Parallel()
	s := serve(t, httpserver.Options{}, func(s *httpserver.Server) {
		s.API.Get("/things/{id}", hello)
		s.API.Get("/fails", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(503) })
	})
	c := client(t)
	get(t, c, s.URL+"/things/7?secret=x")
	line := s.line(t, "http")
	assert.Equal(t, "INFO", line["level"])
	assert.Equal(t, "GET", line["method"])
	assert.Equal(t, "/things/7", line["path"], "a query may contain secrets")
	assert.InDelta(t, 200, line["status"], 0)
	assert.InDelta(t, len("hello"), line["bytes"], 0)
	assert.Contains(t, line["from"], "127.0.0.1:")
	assert.Contains(t, line, "duration_us")

	get(t, c, s.URL+"/readyz")
	get(t, c, s.URL+"/fails")
	kittest.Eventually(t, func() bool { return strings.Contains(s.Log.String(), `"path":"/fails"`) }, "/fails is logged")
	lines := s.lines(t, "http")
	require.Len(t, lines, 2, "/readyz is not logged at INFO")
	assert.Equal(t, "WARN", lines[1]["level"])
}

// The handler's span and the log line belong to the caller's trace, or to a new one if
// the caller has none.
func TestTrace_ContinuesCallers(t *testing.T) {
	t.Parallel()
	inside := make(chan trace.SpanContext, 1)
	s := serve(t, httpserver.Options{}, func(s *httpserver.Server) {
		s.API.Get("/things", func(_ http.ResponseWriter, r *http.Request) { inside <- trace.SpanContextFromContext(r.Context()) })
	})
	const id = "0af7651916cd43dd8448eb211c80319c"
	_, _ = s.raw(t, "GET /things HTTP/1.1\r\nHost: test\r\ntraceparent: 00-"+id+"-b7ad6b7169203331-01\r\n\r\n")
	span := <-inside
	assert.Equal(t, id, span.TraceID().String())
	assert.NotEqual(t, "b7ad6b7169203331", span.SpanID().String(), "the server's span is not the caller's")
	assert.True(t, span.IsSampled(), "the caller's decision to sample is kept")
	line := s.line(t, "http")
	assert.Equal(t, id, line["trace_id"])
	assert.Equal(t, span.SpanID().String(), line["span_id"])

	get(t, client(t), s.URL+"/things")
	span = <-inside
	assert.True(t, span.IsValid(), "the server starts a trace")
	assert.NotEqual(t, id, span.TraceID().String())
}

// Requests are counted by route pattern, so that the number of time series does not
// depend on what clients send.
func TestMetrics_CountByPattern(t *testing.T) {
	t.Parallel()
	s := serve(t, httpserver.Options{}, func(s *httpserver.Server) {
		s.API.Get("/things/{id}", hello)
		s.Streams.Get("/stream", hello)
	})
	c := client(t)
	for i := range 20 {
		get(t, c, fmt.Sprintf("%s/things/%d?key=%d", s.URL, i, i))
		get(t, c, fmt.Sprintf("%s/no/%d", s.URL, i))
		do(t, c, fmt.Sprintf("BREW%d", i), s.URL+"/things/1", nil)
	}
	do(t, c, http.MethodHead, s.URL+"/things/1", nil)
	get(t, c, s.URL+"/stream")
	get(t, c, s.URL+"/livez")
	s.awaitCounts(t, map[string]uint64{
		"GET /things/{id} 200":  20,
		"HEAD /things/{id} 200": 1,
		"GET /stream 200":       1,
		"GET /livez 200":        1,
		"GET unmatched 404":     20,
		"_OTHER unmatched 405":  20,
	})
	problems, err := testutil.GatherAndLint(s.Tel.Metrics)
	require.NoError(t, err)
	assert.Empty(t, problems)
}

// Requests beyond the concurrency limit are shed. Probes are not.
func TestServer_ShedsBeyondTheLimit(t *testing.T) {
	t.Parallel()
	started, release := make(chan struct{}), make(chan struct{})
	slow := func(http.ResponseWriter, *http.Request) { started <- struct{}{}; <-release }
	s := serve(t, httpserver.Options{Limiter: limiter.New(2, prometheus.NewRegistry())}, func(s *httpserver.Server) {
		s.API.Get("/slow", slow)
		s.API.Get("/hello", hello)
		s.Streams.Get("/stream", slow)
		s.Probes.Get("/", hello)
	})
	c := client(t)
	stream := background(c, s.URL+"/stream")
	<-started
	resp, body := get(t, c, s.URL+"/stream")
	assertProblem(t, resp, body, 503) // streams may use half of the limit
	request := background(c, s.URL+"/slow")
	<-started

	begin := time.Now()
	resp, body = get(t, c, s.URL+"/hello")
	assert.GreaterOrEqual(t, time.Since(begin), limiter.QueueTime)
	p := assertProblem(t, resp, body, 503)
	assert.Equal(t, "unavailable", p.Class)
	assert.Equal(t, "1", resp.Header.Get("Retry-After"))
	assert.Len(t, p.TraceID, 32)
	for _, path := range []string{"/livez", "/readyz", "/health", "/"} {
		resp, _ = get(t, c, s.URL+path)
		assert.Equal(t, 200, resp.StatusCode, path)
	}

	close(release)
	assert.Equal(t, 200, (<-request).status)
	assert.Equal(t, 200, (<-stream).status)
	kittest.Eventually(t, func() bool {
		resp, _ := get(t, c, s.URL+"/hello")
		return resp.StatusCode == 200
	}, "requests are served again")
}

// A client that disconnects ends the handler's context, or an injected latency before
// the handler is called. The request is counted as 499.
func TestServer_DisconnectEndsRequest(t *testing.T) {
	t.Parallel()
	ended := make(chan error, 1)
	faults := fault.NewSwitch(true, func(bool) {})
	s := serve(t, httpserver.Options{Faults: faults}, func(s *httpserver.Server) {
		s.API.Get("/slow", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done(); ended <- r.Context().Err() })
	})
	disconnect := func() {
		conn := s.dial(t)
		_, err := io.WriteString(conn, "GET /slow HTTP/1.1\r\nHost: test\r\n\r\n")
		require.NoError(t, err)
		require.NoError(t, conn.Close())
	}
	disconnect()
	require.ErrorIs(t, <-ended, context.Canceled)
	s.awaitCounts(t, map[string]uint64{"GET /slow 499": 1})

	faults.Set(fault.Fault{Latency: fault.MaxLatency})
	disconnect()
	s.awaitCounts(t, map[string]uint64{"GET /slow 499": 2})
	assert.Empty(t, ended, "the handler was not called during the injected latency")
}

// Faults are injected into the API and the streams, not into probes.
func TestServer_InjectsNoFaultsInProbes(t *testing.T) {
	t.Parallel()
	faults := fault.NewSwitch(true, func(bool) {})
	s := serve(t, httpserver.Options{Faults: faults}, func(s *httpserver.Server) {
		s.API.Get("/hello", hello)
		s.Streams.Get("/stream", hello)
		s.Probes.Get("/", hello)
	})
	faults.Set(fault.Fault{ErrorRate: 1})
	c := client(t)
	for _, path := range []string{"/hello", "/stream"} {
		resp, body := get(t, c, s.URL+path)
		p := assertProblem(t, resp, body, 503)
		assert.Equal(t, "unavailable", p.Class)
		assert.Empty(t, resp.Header.Get("Retry-After"), "the client may retry on another pod immediately")
	}
	for _, path := range []string{"/livez", "/readyz", "/health", "/"} {
		resp, _ := get(t, c, s.URL+path)
		assert.Equal(t, 200, resp.StatusCode, path)
	}
	faults.Set(fault.Fault{})
	resp, _ := get(t, c, s.URL+"/hello")
	assert.Equal(t, 200, resp.StatusCode)
}

// Control routes get no injected faults, so that the fault can be removed.
func TestControl_GetsNoFaults(t *testing.T) {
	t.Parallel()
	faults := fault.NewSwitch(true, func(bool) {})
	faults.Set(fault.Fault{Latency: time.Minute, ErrorRate: 1})
	s := serve(t, httpserver.Options{Faults: faults}, func(s *httpserver.Server) {
		s.Control.Get("/control", hello)
		s.ControlStreams.Get("/stream", hello)
	})
	for _, path := range []string{"/control", "/stream"} {
		resp, _ := get(t, client(t), s.URL+path)
		assert.Equal(t, http.StatusOK, resp.StatusCode, path)
	}
}
