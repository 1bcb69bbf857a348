package httpclient_test

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/propagation"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
	"go.uber.org/goleak"

	"example.com/tandem/kit/call"
	"example.com/tandem/kit/httpclient"
	"example.com/tandem/kit/kittest"
)

// aWhile is far more than anything here takes, and far less than the time-out
// that would end a call which should have ended otherwise.
const aWhile = 20 * time.Second

// hang answers nothing for as long as its client stays.
func hang(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }

func TestNoServerHoldsACallBeyondItsDeadline(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0") // connections open, and no one ever reads
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, silent.Close()) })

	for name, answer := range map[string]http.HandlerFunc{
		"no connection is accepted": nil,
		"no answer":                 hang,
		"no body": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "2")
			_ = http.NewResponseController(w).Flush()
			hang(w, r)
		},
		"no end of the body": func(w http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil {
				_, _ = io.WriteString(w, ".")
				_ = http.NewResponseController(w).Flush()
				time.Sleep(time.Millisecond)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url := "http://" + silent.Addr().String()
			if answer != nil {
				url, _ = serve(t, func(_ int, w http.ResponseWriter, r *http.Request) { answer(w, r) })
			}
			start := time.Now()
			r := get(t, newClient(t, httpclient.Options{Timeout: 200 * time.Millisecond}), url)
			assert.Equal(t, call.Timeout, r.class, "%v", r.err)
			assert.Less(t, time.Since(start), aWhile)
		})
	}
}

func TestShorterDeadlineOfTheCallerWins(t *testing.T) {
	url, _ := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) { hang(w, r) })
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	start := time.Now()
	r := do(newClient(t, httpclient.Options{Timeout: time.Minute}), request(t, ctx, http.MethodGet, url, nil))
	assert.Equal(t, call.Timeout, r.class, "%v", r.err)
	assert.Less(t, time.Since(start), aWhile)
}

func TestCallerThatLeavesEndsTheRequestAtTheServer(t *testing.T) {
	began, ended := make(chan struct{}), make(chan struct{})
	url, requests := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) {
		close(began)
		hang(w, r)
		close(ended)
	})
	ctx, leave := context.WithCancel(t.Context())
	go func() {
		<-began
		leave()
	}()
	r := do(newClient(t, httpclient.Options{}), request(t, ctx, http.MethodGet, url, nil))
	assert.Equal(t, call.Canceled, r.class, "%v", r.err)
	select {
	case <-ended:
	case <-time.After(aWhile):
		assert.Fail(t, "the server's request goes on")
	}
	assert.EqualValues(t, 1, requests.Load())
}

func TestAnswerBeyondTheLimitIsNotRead(t *testing.T) {
	const limit = 1 << 20 // the default
	for name, answer := range map[string]http.HandlerFunc{
		"as it announces": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "10485760")
			_ = http.NewResponseController(w).Flush()
			hang(w, r) // whoever waits for the body waits for ever
		},
		"as it turns out": func(w http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil { // whoever reads it all reads for ever
				_, _ = w.Write(make([]byte, 64<<10))
			}
		},
		"by one byte": func(w http.ResponseWriter, _ *http.Request) {
			_ = http.NewResponseController(w).Flush() // so that its length is not announced
			_, _ = w.Write(make([]byte, limit+1))
		},
	} {
		t.Run(name, func(t *testing.T) {
			url, _ := serve(t, func(n int, w http.ResponseWriter, r *http.Request) {
				if n == 1 {
					answer(w, r)
				} else {
					ok(w, r)
				}
			})
			client := newClient(t, httpclient.Options{})
			r := get(t, client, url)
			require.ErrorIs(t, r.err, httpclient.ErrTooLarge)
			assert.Equal(t, call.Other, r.class)
			assert.Equal(t, 1, r.Attempts, "it would be as large again")

			assert.Equal(t, "ok", get(t, client, url).body, "the next call")
		})
	}
}

func TestAnswerWithinTheLimitIsWhole(t *testing.T) {
	const limit = 1000
	for name, announced := range map[string]bool{"length announced": true, "length not announced": false} {
		t.Run(name, func(t *testing.T) {
			url, _ := serve(t, func(_ int, w http.ResponseWriter, _ *http.Request) {
				if !announced {
					_ = http.NewResponseController(w).Flush()
				}
				_, _ = io.WriteString(w, strings.Repeat("x", limit))
			})
			r := get(t, newClient(t, httpclient.Options{MaxResponse: limit}), url)
			require.NoError(t, r.err)
			assert.Equal(t, strings.Repeat("x", limit), r.body)
		})
	}
}

func TestHeadOfALargeAnswerIsNotTooLarge(t *testing.T) {
	url, _ := serve(t, func(_ int, w http.ResponseWriter, _ *http.Request) { w.Header().Set("Content-Length", "10485760") })
	r := do(newClient(t, httpclient.Options{}), request(t, t.Context(), http.MethodHead, url, nil))
	require.NoError(t, r.err)
	assert.Equal(t, http.StatusOK, r.status)
}

func TestRedirectsAreNotFollowed(t *testing.T) {
	url, requests := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "/elsewhere", http.StatusFound)
	})
	r := get(t, newClient(t, httpclient.Options{}), url)
	require.NoError(t, r.err)
	assert.Equal(t, http.StatusFound, r.status)
	assert.EqualValues(t, 1, requests.Load())
}

func TestRecordSaysWhatHappened(t *testing.T) {
	port := kittest.FreePort()
	hosts := kittest.Loopbacks(t, 2)
	for _, host := range hosts {
		pod(t, join(host, port), 0, func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.WriteString(w, r.Context().Value(http.LocalAddrContextKey).(net.Addr).String())
		})
	}
	names.Set("record.test", hosts...)
	client := newClient(t, httpclient.Options{})
	for range 2 { // on a new connection, and on one that is kept
		r := get(t, client, "http://record.test:"+port)
		require.NoError(t, r.err)
		assert.ElementsMatch(t, []string{join(hosts[0], port), join(hosts[1], port)}, r.Addresses)
		assert.Equal(t, r.body, r.Peer)
		assert.Equal(t, 1, r.Attempts)
	}

	names.Set("record-down.test", hosts[0])
	r := get(t, client, "http://record-down.test:"+kittest.FreePort())
	assert.Equal(t, call.Refused, r.class, "%v", r.err)
	assert.Len(t, r.Addresses, 1)
	assert.Empty(t, r.Peer)
}

func TestPeerIsThatOfTheLastAttempt(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	go func() { // answers once, and is down from then on
		conn, err := l.Accept()
		if assert.NoError(t, err) {
			assert.NoError(t, l.Close())
			_, _ = http.ReadRequest(bufio.NewReader(conn))
			_, _ = io.WriteString(conn, "HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\n\r\n")
			_ = conn.Close()
		}
	}()
	r := get(t, newClient(t, httpclient.Options{}), "http://"+l.Addr().String())
	assert.Equal(t, call.Refused, r.class, "%v", r.err)
	assert.Equal(t, 3, r.Attempts)
	assert.Empty(t, r.Peer)
}

func TestMetricsCountCallsByOutcomeAndTimeAttempts(t *testing.T) {
	tel := kittest.Telemetry(t, io.Discard)
	client := newClient(t, httpclient.Options{Telemetry: tel})
	url, _ := serve(t, func(n int, w http.ResponseWriter, r *http.Request) {
		switch n {
		case 1:
			ok(w, r)
		case 2: // and 3 repeats it
			w.WriteHeader(http.StatusServiceUnavailable)
		case 4:
			w.WriteHeader(http.StatusInternalServerError)
		}
	})
	for range 3 {
		require.NoError(t, get(t, client, url).err)
	}
	require.Error(t, get(t, client, "http://metrics.test").err)

	text := kittest.Scrape(t, tel)
	for _, line := range []string{
		`calls_total{outcome="ok",peer="127.0.0.1",transport="http"} 2`,
		`calls_total{outcome="other",peer="127.0.0.1",transport="http"} 1`,
		`calls_total{outcome="dns",peer="metrics.test",transport="http"} 1`,
		`http_client_request_duration_seconds_count{code="200",method="GET",peer="127.0.0.1"} 2`,
		`http_client_request_duration_seconds_count{code="503",method="GET",peer="127.0.0.1"} 1`,
		`http_client_request_duration_seconds_count{code="500",method="GET",peer="127.0.0.1"} 1`,
		`http_client_request_duration_seconds_count{code="0",method="GET",peer="metrics.test"} 1`,
	} {
		assert.Contains(t, text, line+"\n")
	}
}

func TestTwoClientsShareTheirMetrics(t *testing.T) {
	tel := kittest.Telemetry(t, io.Discard)
	url, _ := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) { ok(w, r) })
	for range 2 {
		require.NoError(t, get(t, newClient(t, httpclient.Options{Telemetry: tel}), url).err)
	}
	text := kittest.Scrape(t, tel)
	assert.Contains(t, text, `calls_total{outcome="ok",peer="127.0.0.1",transport="http"} 2`+"\n")
	assert.Contains(t, text, `http_client_request_duration_seconds_count{code="200",method="GET",peer="127.0.0.1"} 2`+"\n")
}

func TestTraceGoesOnAtTheServerWithASpanForEachAttempt(t *testing.T) {
	spans := tracetest.NewInMemoryExporter()
	provider := sdktrace.NewTracerProvider(sdktrace.WithSyncer(spans))
	tel := kittest.Telemetry(t, io.Discard)
	tel.Traces = provider

	var seen []trace.SpanContext
	url, _ := serve(t, func(n int, w http.ResponseWriter, r *http.Request) {
		ctx := propagation.TraceContext{}.Extract(r.Context(), propagation.HeaderCarrier(r.Header))
		seen = append(seen, trace.SpanContextFromContext(ctx))
		if n == 1 {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})
	ctx, parent := provider.Tracer("test").Start(t.Context(), "parent")
	defer parent.End()
	client := newClient(t, httpclient.Options{Telemetry: tel})
	r := do(client, request(t, ctx, http.MethodGet, url, nil))
	require.NoError(t, r.err)

	require.Len(t, seen, 2)
	attempts := spans.GetSpans()
	require.Len(t, attempts, 2)
	for i, span := range attempts {
		assert.Equal(t, parent.SpanContext().TraceID(), seen[i].TraceID())
		assert.Equal(t, span.SpanContext.SpanID(), seen[i].SpanID(), "the server's parent is the attempt")
		assert.Equal(t, parent.SpanContext().SpanID(), span.Parent.SpanID())
		assert.True(t, seen[i].IsSampled())
	}
	assert.NotEqual(t, seen[0].SpanID(), seen[1].SpanID())

	require.NoError(t, get(t, client, url).err)
	assert.Len(t, spans.GetSpans(), 3, "without a parent, a trace begins here")
	assert.Equal(t, spans.GetSpans()[2].SpanContext.TraceID(), seen[2].TraceID())
}

func TestNothingIsLeftOfAClientWhenItsIdleConnectionsAreClosed(t *testing.T) {
	url, _ := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) { ok(w, r) })
	before := goleak.IgnoreCurrent()
	client := newClient(t, httpclient.Options{})
	together(20, 10, func(int) { assert.NoError(t, get(t, client, url).err) })
	require.Error(t, goleak.Find(before), "connections are kept until then")
	client.CloseIdleConnections()
	goleak.VerifyNone(t, before)
}
