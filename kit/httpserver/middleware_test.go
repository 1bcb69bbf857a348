package httpserver_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

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

// Whatever is refused is a problem that says what would be right and names its trace.
func TestServer_RefusalsAreProblems(t *testing.T) {
	t.Parallel()
	s := serve(t, httpserver.Options{}, func(s *httpserver.Server) {
		s.API.Get("/things", hello)
		s.API.Put("/things", read)
		s.API.Post("/orders", read)
		s.API.Get("/things/{id}", hello)
	})
	const head = " HTTP/1.1\r\nHost: test\r\n"
	for _, c := range []struct {
		name, request string
		status        int
		detail, allow string
	}{
		{"an unknown path", "GET /nothing" + head + "\r\n", 404, "no route for this path", ""},
		{"another method", "DELETE /things" + head + "\r\n", 405, "allowed methods: GET, HEAD, PUT", "GET, HEAD, PUT"},
		{"HEAD where there is no GET", "HEAD /orders" + head + "\r\n", 405, "", "POST"},
		{"another method, below a pattern", "POST /things/a%2Fb" + head + "Content-Length: 0\r\n\r\n", 405, "allowed methods: GET, HEAD", "GET, HEAD"},
		{"a method that no one knows", "BREW /things" + head + "\r\n", 405, "allowed methods: GET, HEAD, PUT", "GET, HEAD, PUT"},
		{"a method that no one knows on an unknown path", "BREW /nothing" + head + "\r\n", 404, "no route for this path", ""},
		{"GET with a body", "GET /things" + head + "Content-Length: 1\r\n\r\nx", 400, "GET requests must not have a body", ""},
		{"GET with a chunked body", "GET /things" + head + "Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n", 400, "GET requests must not have a body", ""},
		{"HEAD with a body", "HEAD /things" + head + "Content-Length: 1\r\n\r\nx", 400, "", ""},
		{"a body that says it is too large", "PUT /things" + head + "Content-Length: 65537\r\n\r\n", 413, "the body exceeds 65536 bytes", ""},
		{"a broken body", "PUT /things" + head + "Transfer-Encoding: chunked\r\n\r\nx\r\n", 400, "read the body: invalid byte in chunk length", ""},
		{"too long a host", "GET /things HTTP/1.1\r\nHost: " + strings.Repeat("x", 16<<10) + "\r\n\r\n", 431, "request line and headers exceed 16384 bytes", ""},
		{"too long a method", strings.Repeat("X", 16<<10) + " /things" + head + "\r\n", 431, "request line and headers exceed 16384 bytes", ""},
		{"too long a header", "GET /things" + head + "X: " + strings.Repeat("x", 16<<10) + "\r\n\r\n", 431, "request line and headers exceed 16384 bytes", ""},
		{"too many headers", "GET /things" + head + strings.Repeat("X: y\r\n", 3<<10) + "\r\n", 431, "request line and headers exceed 16384 bytes", ""},
		{"too long a path", "GET /" + strings.Repeat("x", 16<<10) + head + "\r\n", 431, "request line and headers exceed 16384 bytes", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			resp, body := s.raw(t, c.request)
			assert.Equal(t, c.allow, resp.Header.Get("Allow"))
			if strings.HasPrefix(c.request, "HEAD") { // whose answer has no body
				assert.Equal(t, c.status, resp.StatusCode)
				assert.Empty(t, body)
				return
			}
			p := assertProblem(t, resp, body, c.status)
			assert.Equal(t, c.detail, p.Detail)
			assert.Len(t, p.TraceID, 32)
		})
	}
}

// Requests just within the limits are served.
func TestServer_ServesUpToTheLimits(t *testing.T) {
	t.Parallel()
	s := serve(t, httpserver.Options{}, func(s *httpserver.Server) {
		s.API.Get("/things", hello)
		s.API.Put("/things", read)
	})
	const head = " HTTP/1.1\r\nHost: test\r\n"
	for _, c := range []struct{ name, request, body string }{
		{"a chunked body that is empty", "GET /things" + head + "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "hello"},
		{"headers just below the limit", "GET /things" + head + "X: " + strings.Repeat("x", 16<<10-len("GET/thingstest")-len("X: \r\n")) + "\r\n\r\n", "hello"},
		{"the largest body", "PUT /things" + head + "Content-Length: 65536\r\n\r\n" + strings.Repeat("x", 64<<10), "65536 bytes <nil>"},
		{"HEAD where GET is", "HEAD /things" + head + "\r\n", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			resp, body := s.raw(t, c.request)
			assert.Equal(t, 200, resp.StatusCode)
			assert.Equal(t, c.body, body)
			assert.Equal(t, "nosniff", resp.Header.Get("X-Content-Type-Options"))
		})
	}
}

// A body that does not say its length is refused beyond the limit, too.
func TestServer_LimitsChunkedBodies(t *testing.T) {
	t.Parallel()
	s := serve(t, httpserver.Options{MaxBody: 10}, func(s *httpserver.Server) { s.API.Put("/things", read) })
	put := func(size int) (*http.Response, string) {
		// A reader of no known length is sent in chunks.
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
	for range 100 { // the server reads the halves meanwhile
		resp, _ := get(t, client(t), s.URL+"/hello")
		require.Equal(t, 200, resp.StatusCode)
		time.Sleep(time.Millisecond)
	}
}

// A body that does not arrive in time is a 408, and ends the connection.
func TestServer_SlowBodyTimesOut(t *testing.T) {
	t.Parallel() // it waits for 15 s
	s := serve(t, httpserver.Options{}, func(s *httpserver.Server) { s.API.Put("/things", read) })
	resp, body := s.raw(t, "PUT /things HTTP/1.1\r\nHost: test\r\nContent-Length: 10\r\n\r\nhalf")
	assertProblem(t, resp, body, 408)
	assert.True(t, resp.Close)
}

// Beyond twice the limit net/http itself refuses, before any handler.
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
	assert.Empty(t, s.counts(t), "no handler of ours saw it")
	assert.Empty(t, reached)
}

// A panic is a 500 without the headers that the handler had set, and a log line.
func TestServer_PanicIsA500(t *testing.T) {
	t.Parallel()
	s := serve(t, httpserver.Options{}, func(s *httpserver.Server) {
		s.API.Get("/panic", func(w http.ResponseWriter, _ *http.Request) {
			for _, name := range []string{"ETag", "Last-Modified", "Expires", "Cache-Control", "Content-Encoding", "Set-Cookie"} {
				w.Header().Set(name, "x")
			}
			w.Header().Set("Content-Length", "5")
			panic("out of cheese")
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
	assert.Equal(t, "out of cheese", line["error"])
	assert.Contains(t, line["stack"], "TestServer_PanicIsA500", "the stack leads to the place")
	assert.Equal(t, p.TraceID, line["trace_id"])
	s.awaitCounts(t, map[string]uint64{"GET /panic 500": 1})

	resp, _ = get(t, c, s.URL+"/hello")
	assert.Equal(t, 200, resp.StatusCode, "the server goes on")
}

// A handler that panics or aborts in the middle of a response breaks the
// connection, and the response counts as 500.
func TestServer_LogsAbortedResponseAs500(t *testing.T) {
	t.Parallel()
	for name, how := range map[string]any{"a panic": "out of cheese", "an abort": http.ErrAbortHandler} {
		t.Run(name, func(t *testing.T) {
			s := serve(t, httpserver.Options{}, func(s *httpserver.Server) {
				s.API.Get("/panic", func(w http.ResponseWriter, _ *http.Request) {
					_, _ = io.WriteString(w, "half an ans")
					_ = http.NewResponseController(w).Flush()
					panic(how)
				})
			})
			out := <-background(client(t), s.URL+"/panic")
			assert.Equal(t, 200, out.status)
			assert.Equal(t, "half an ans", out.body)
			require.ErrorIs(t, out.err, io.ErrUnexpectedEOF, "a client must not take half an answer for a whole one")

			assert.InDelta(t, 500, s.line(t, "http")["status"], 0)
			s.awaitCounts(t, map[string]uint64{"GET /panic 500": 1})
			assert.Len(t, s.lines(t, "panic"), map[string]int{"a panic": 1, "an abort": 0}[name])
		})
	}
}

// A response whose client leaves in the middle counts as 499.
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
			_, _ = io.WriteString(w, "half an ans")
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

// A client that leaves when it has all of the response does not count as 499,
// whenever the handler returns.
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

// Nothing that a client sends goes into a log line without a limit.
func TestLog_TruncatesValues(t *testing.T) {
	t.Parallel()
	s := serve(t, httpserver.Options{}, nil)
	_, _ = s.raw(t, strings.Repeat("M", 10<<10)+" /"+strings.Repeat("p", 1<<10)+" HTTP/1.1\r\nHost: test\r\n\r\n")
	line := s.line(t, "http")
	assert.Equal(t, strings.Repeat("M", 256), line["method"])
	assert.Equal(t, "/"+strings.Repeat("p", 255), line["path"])
}

func TestLog_CannotBeForged(t *testing.T) {
	t.Parallel()
	s := serve(t, httpserver.Options{}, nil)
	forged := "/x\n{\"level\":\"ERROR\",\"msg\":\"http\"}\r\x1b[31m\x00\u2028"
	get(t, client(t), s.URL+"/x%0A%7B%22level%22:%22ERROR%22,%22msg%22:%22http%22%7D%0D%1B%5B31m%00%E2%80%A8")

	line := s.line(t, "http") // there is one, and each line is JSON
	assert.Equal(t, forged, line["path"])
	assert.Equal(t, "INFO", line["level"])
	for _, r := range strings.ReplaceAll(s.Log.String(), "\n", "") {
		assert.GreaterOrEqual(t, r, ' ', "no control character reaches a terminal")
	}
}

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
	assert.Equal(t, "/things/7", line["path"], "queries may hold what is not for logs")
	assert.InDelta(t, 200, line["status"], 0)
	assert.InDelta(t, len("hello"), line["bytes"], 0)
	assert.Contains(t, line["from"], "127.0.0.1:")
	assert.Contains(t, line, "duration_us")

	get(t, c, s.URL+"/readyz")
	get(t, c, s.URL+"/fails")
	kittest.Eventually(t, func() bool { return strings.Contains(s.Log.String(), `"path":"/fails"`) }, "the log line of /fails")
	lines := s.lines(t, "http")
	require.Len(t, lines, 2, "what kubelet asks every few seconds is no news")
	assert.Equal(t, "WARN", lines[1]["level"])
}

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
	assert.NotEqual(t, "b7ad6b7169203331", span.SpanID().String(), "with a span of our own in it")
	assert.True(t, span.IsSampled(), "sampled by the caller is sampled to the end")
	line := s.line(t, "http")
	assert.Equal(t, id, line["trace_id"])
	assert.Equal(t, span.SpanID().String(), line["span_id"])

	get(t, client(t), s.URL+"/things")
	span = <-inside
	assert.True(t, span.IsValid(), "without a caller's trace one begins here")
	assert.NotEqual(t, id, span.TraceID().String())
}

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

// Beyond the concurrency limit requests are shed, probes are not.
func TestServer_ShedsBeyondTheLimit(t *testing.T) {
	t.Parallel()
	started, release := make(chan struct{}), make(chan struct{})
	slowly := func(http.ResponseWriter, *http.Request) { started <- struct{}{}; <-release }
	s := serve(t, httpserver.Options{Limiter: limiter.New(2, prometheus.NewRegistry())}, func(s *httpserver.Server) {
		s.API.Get("/slow", slowly)
		s.API.Get("/hello", hello)
		s.Streams.Get("/stream", slowly)
		s.Probes.Get("/", hello)
	})
	c := client(t)
	stream := background(c, s.URL+"/stream")
	<-started
	resp, body := get(t, c, s.URL+"/stream")
	assertProblem(t, resp, body, 503) // streams may take half of the limit
	slow := background(c, s.URL+"/slow")
	<-started

	begun := time.Now()
	resp, body = get(t, c, s.URL+"/hello")
	assert.GreaterOrEqual(t, time.Since(begun), limiter.QueueTime)
	p := assertProblem(t, resp, body, 503)
	assert.Equal(t, "unavailable", p.Class)
	assert.Equal(t, "1", resp.Header.Get("Retry-After"))
	assert.Len(t, p.TraceID, 32)
	for _, path := range []string{"/livez", "/readyz", "/health", "/"} {
		resp, _ = get(t, c, s.URL+path)
		assert.Equal(t, 200, resp.StatusCode, path)
	}

	close(release)
	assert.Equal(t, 200, (<-slow).status)
	assert.Equal(t, 200, (<-stream).status)
	kittest.Eventually(t, func() bool {
		resp, _ := get(t, c, s.URL+"/hello")
		return resp.StatusCode == 200
	}, "there is room again")
}

func TestServer_DisconnectEndsRequest(t *testing.T) {
	t.Parallel()
	ended := make(chan error, 1)
	faults := fault.NewSwitch(true, func(bool) {})
	s := serve(t, httpserver.Options{Faults: faults}, func(s *httpserver.Server) {
		s.API.Get("/slow", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done(); ended <- r.Context().Err() })
	})
	leave := func() {
		conn := s.dial(t)
		_, err := io.WriteString(conn, "GET /slow HTTP/1.1\r\nHost: test\r\n\r\n")
		require.NoError(t, err)
		require.NoError(t, conn.Close())
	}
	leave()
	require.ErrorIs(t, <-ended, context.Canceled)
	s.awaitCounts(t, map[string]uint64{"GET /slow 499": 1})

	faults.Set(fault.Fault{Latency: fault.MaxLatency})
	leave()
	s.awaitCounts(t, map[string]uint64{"GET /slow 499": 2})
	assert.Empty(t, ended, "a request that waited for the fault's latency was not begun")
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
		assert.Empty(t, resp.Header.Get("Retry-After"), "another pod may serve it at once")
	}
	for _, path := range []string{"/livez", "/readyz", "/health", "/"} {
		resp, _ := get(t, c, s.URL+path)
		assert.Equal(t, 200, resp.StatusCode, path)
	}
	faults.Set(fault.Fault{})
	resp, _ := get(t, c, s.URL+"/hello")
	assert.Equal(t, 200, resp.StatusCode)
}
