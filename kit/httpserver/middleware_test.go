package httpserver_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/trace"

	"example.com/tandem/kit/fault"
	"example.com/tandem/kit/httpserver"
	"example.com/tandem/kit/kittest"
)

// read answers what it was sent, or why it could not read it.
func read(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if _, tooLarge := errors.AsType[*http.MaxBytesError](err); tooLarge {
		http.Error(w, "cut off", http.StatusRequestEntityTooLarge)
		return
	}
	_, _ = fmt.Fprintf(w, "%d bytes", len(body))
}

func TestWhatIsRefusedIsAProblem(t *testing.T) {
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
		{"an unknown path", "GET /nothing" + head + "\r\n", 404, "nothing is served at this path", ""},
		{"another method", "DELETE /things" + head + "\r\n", 405, "this path takes GET, HEAD, PUT", "GET, HEAD, PUT"},
		{"HEAD where there is no GET", "HEAD /orders" + head + "\r\n", 405, "", "POST"},
		{"another method, below a pattern", "POST /things/a%2Fb" + head + "Content-Length: 0\r\n\r\n", 405, "this path takes GET, HEAD", "GET, HEAD"},
		{"a method that no one knows", "BREW /things" + head + "\r\n", 405, "this path takes GET, HEAD, PUT", "GET, HEAD, PUT"},
		{"a method that no one knows on an unknown path", "BREW /nothing" + head + "\r\n", 404, "nothing is served at this path", ""},
		{"GET with a body", "GET /things" + head + "Content-Length: 1\r\n\r\nx", 400, "GET takes no body", ""},
		{"GET with a chunked body", "GET /things" + head + "Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n", 400, "GET takes no body", ""},
		{"HEAD with a body", "HEAD /things" + head + "Content-Length: 1\r\n\r\nx", 400, "", ""},
		{"a body that says it is too large", "PUT /things" + head + "Content-Length: 1048577\r\n\r\n", 413, "the body exceeds 1048576 bytes", ""},
		{"too long a header", "GET /things" + head + "X: " + strings.Repeat("x", 16<<10) + "\r\n\r\n", 431, "request line and headers exceed 16384 bytes", ""},
		{"too many headers", "GET /things" + head + strings.Repeat("X: y\r\n", 4<<10) + "\r\n", 431, "request line and headers exceed 16384 bytes", ""},
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
		})
	}
}

func TestWhatIsHonestPasses(t *testing.T) {
	t.Parallel()
	s := serve(t, httpserver.Options{}, func(s *httpserver.Server) {
		s.API.Get("/things", hello)
		s.API.Put("/things", read)
	})
	const head = " HTTP/1.1\r\nHost: test\r\n"
	for _, c := range []struct{ name, request, body string }{
		{"a chunked body that is empty", "GET /things" + head + "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "hello"},
		{"headers just below the limit", "GET /things" + head + "X: " + strings.Repeat("x", 16<<10-len("/things")-len("X: \r\n")) + "\r\n\r\n", "hello"},
		{"the largest body", "PUT /things" + head + "Content-Length: 1048576\r\n\r\n" + strings.Repeat("x", 1<<20), "1048576 bytes"},
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

func TestABodyThatDoesNotSayItsLengthIsCutOffAtTheLimit(t *testing.T) {
	t.Parallel()
	s := serve(t, httpserver.Options{}, func(s *httpserver.Server) { s.API.Put("/things", read) })
	for size, want := range map[int]string{1 << 20: "1048576 bytes", 1<<20 + 1: "cut off\n"} {
		// A reader of no known length is sent in chunks.
		_, body := do(t, client(t), http.MethodPut, s.URL+"/things", io.MultiReader(strings.NewReader(strings.Repeat("x", size))))
		assert.Equal(t, want, body)
	}
}

func TestHeadersBeyondAllBoundsEndAtNetHTTP(t *testing.T) {
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

func TestAPanicIsA500AndALogLine(t *testing.T) {
	t.Parallel()
	s := serve(t, httpserver.Options{}, func(s *httpserver.Server) {
		s.API.Get("/panic", func(http.ResponseWriter, *http.Request) { panic("out of cheese") })
		s.API.Get("/hello", hello)
	})
	c := client(t)
	resp, body := get(t, c, s.URL+"/panic")
	p := assertProblem(t, resp, body, 500)
	assert.NotContains(t, p.Detail, "cheese", "what went wrong inside is no caller's business")

	line := s.line(t, "panic")
	assert.Equal(t, "ERROR", line["level"])
	assert.Equal(t, "out of cheese", line["error"])
	assert.Contains(t, line["stack"], "TestAPanicIsA500AndALogLine", "the stack leads to the place")
	assert.NotEmpty(t, line["trace_id"])
	s.awaitCounts(t, map[string]uint64{"GET /panic 500": 1})

	resp, _ = get(t, c, s.URL+"/hello")
	assert.Equal(t, 200, resp.StatusCode, "the server goes on")
}

func TestAPanicInAnAnswerBreaksTheConnectionOff(t *testing.T) {
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

			s.line(t, "http")
			assert.Len(t, s.lines(t, "panic"), map[string]int{"a panic": 1, "an abort": 0}[name])
		})
	}
}

func TestNoRequestForgesALogLine(t *testing.T) {
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

func TestTheAccessLogTellsTheRequest(t *testing.T) {
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

func TestTheCallersTraceGoesOn(t *testing.T) {
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

func TestMetricsAreCountedByPatternAndStayFew(t *testing.T) {
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

func TestBeyondTheLimitRequestsAreRefusedAndProbesAnswered(t *testing.T) {
	t.Parallel()
	started, release := make(chan struct{}), make(chan struct{})
	slowly := func(http.ResponseWriter, *http.Request) { started <- struct{}{}; <-release }
	s := serve(t, httpserver.Options{MaxInFlight: 1}, func(s *httpserver.Server) {
		s.API.Get("/slow", slowly)
		s.API.Get("/hello", hello)
		s.Streams.Get("/stream", slowly)
	})
	c := client(t)
	slow := background(c, s.URL+"/slow")
	<-started

	begun := time.Now()
	resp, body := get(t, c, s.URL+"/hello")
	assert.GreaterOrEqual(t, time.Since(begun), 50*time.Millisecond, "it waits for a place first")
	p := assertProblem(t, resp, body, 503)
	assert.Equal(t, "unavailable", p.Class)
	assert.Equal(t, "1", resp.Header.Get("Retry-After"))
	for _, path := range []string{"/livez", "/readyz", "/health"} {
		resp, _ = get(t, c, s.URL+path)
		assert.Equal(t, 200, resp.StatusCode, "%s: a pod that is restarted for being busy makes others busier", path)
	}
	stream := background(c, s.URL+"/stream")
	<-started // streams have places of their own
	resp, body = get(t, c, s.URL+"/stream")
	assertProblem(t, resp, body, 503) // and no more of them

	close(release)
	assert.Equal(t, 200, (<-slow).status)
	assert.Equal(t, 200, (<-stream).status)
	kittest.Eventually(t, func() bool {
		resp, _ := get(t, c, s.URL+"/hello")
		return resp.StatusCode == 200
	}, "the place is free again")
}

func TestAClientThatLeavesEndsItsRequest(t *testing.T) {
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

func TestAFaultStrikesTheAPIAndSparesTheProbes(t *testing.T) {
	t.Parallel()
	faults := fault.NewSwitch(true, func(bool) {})
	s := serve(t, httpserver.Options{Faults: faults}, func(s *httpserver.Server) {
		s.API.Get("/hello", hello)
		s.Streams.Get("/stream", hello)
	})
	faults.Set(fault.Fault{ErrorRate: 1})
	c := client(t)
	for _, path := range []string{"/hello", "/stream"} {
		resp, body := get(t, c, s.URL+path)
		p := assertProblem(t, resp, body, 503)
		assert.Equal(t, "unavailable", p.Class)
		assert.Empty(t, resp.Header.Get("Retry-After"), "another pod may be asked at once")
	}
	for _, path := range []string{"/livez", "/readyz", "/health"} {
		resp, _ := get(t, c, s.URL+path)
		assert.Equal(t, 200, resp.StatusCode, path)
	}
	faults.Set(fault.Fault{})
	resp, _ := get(t, c, s.URL+"/hello")
	assert.Equal(t, 200, resp.StatusCode)
}
