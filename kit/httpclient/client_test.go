package httpclient_test

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"net/url"
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

// aWhile is far more than any call in these tests takes, and far less than the default
// timeout of newClient, which would end a call that hangs.
const aWhile = 20 * time.Second

// hang sends nothing until the client cancels its request.
func hang(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }

// A call ends at its deadline, whatever the server does.
func TestClient_DeadlineEndsHungCall(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0") // accepts connections and reads nothing
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, silent.Close()) })

	for name, handler := range map[string]http.HandlerFunc{
		"not accepted": nil,
		"no response":  hang,
		"no body": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "2")
			_ = http.NewResponseController(w).Flush()
			hang(w, r)
		},
		"endless body": func(w http.ResponseWriter, r *http.Request) {
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
			if handler != nil {
				url, _ = serve(t, func(_ int, w http.ResponseWriter, r *http.Request) { handler(w, r) })
			}
			start := time.Now()
			r := get(t, newClient(t, httpclient.Options{Timeout: 200 * time.Millisecond}), url)
			assert.Equal(t, call.Timeout, r.class, "%v", r.err)
			assert.Less(t, time.Since(start), aWhile)
		})
	}
}

// A call ends at the deadline of its context if that is sooner than the timeout.
func TestClient_CallerDeadline(t *testing.T) {
	url, _ := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) { hang(w, r) })
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	start := time.Now()
	r := do(newClient(t, httpclient.Options{Timeout: time.Minute}), request(t, ctx, http.MethodGet, url, nil))
	assert.Equal(t, call.Timeout, r.class, "%v", r.err)
	assert.Less(t, time.Since(start), aWhile)
}

// Canceling a call ends the request in the server, and the call is not retried.
func TestClient_CancelEndsServerRequest(t *testing.T) {
	began, ended := make(chan struct{}), make(chan struct{})
	url, requests := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) {
		close(began)
		hang(w, r)
		close(ended)
	})
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-began
		cancel()
	}()
	r := do(newClient(t, httpclient.Options{}), request(t, ctx, http.MethodGet, url, nil))
	assert.Equal(t, call.Canceled, r.class, "%v", r.err)
	select {
	case <-ended:
	case <-time.After(aWhile):
		assert.Fail(t, "the request in the server did not end")
	}
	assert.EqualValues(t, 1, requests.Load())
}

// A response larger than MaxResponse fails the call, which is not retried. The next
// call succeeds.
func TestClient_ResponseTooLarge(t *testing.T) {
	const limit = 1 << 20 // the default
	for name, handler := range map[string]http.HandlerFunc{
		"by Content-Length": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "10485760")
			_ = http.NewResponseController(w).Flush()
			hang(w, r) // a client that reads the body hangs
		},
		"without end": func(w http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil {
				_, _ = w.Write(make([]byte, 64<<10))
			}
		},
		"by one byte": func(w http.ResponseWriter, _ *http.Request) {
			_ = http.NewResponseController(w).Flush() // sends the header without Content-Length
			_, _ = w.Write(make([]byte, limit+1))
		},
	} {
		t.Run(name, func(t *testing.T) {
			url, _ := serve(t, func(n int, w http.ResponseWriter, r *http.Request) {
				if n == 1 {
					handler(w, r)
				} else {
					ok(w, r)
				}
			})
			client := newClient(t, httpclient.Options{})
			r := get(t, client, url)
			require.ErrorIs(t, r.err, httpclient.ErrTooLarge)
			assert.Equal(t, call.Other, r.class)
			assert.Equal(t, 1, r.Attempts, "not retried")

			assert.Equal(t, "ok", get(t, client, url).body, "the next call")
		})
	}
}

// A response as large as MaxResponse is returned whole.
func TestClient_ResponseAtLimit(t *testing.T) {
	const limit = 1000
	for name, hasLength := range map[string]bool{"Content-Length": true, "no Content-Length": false} {
		t.Run(name, func(t *testing.T) {
			url, _ := serve(t, func(_ int, w http.ResponseWriter, _ *http.Request) {
				if !hasLength {
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

// The Content-Length of a response to HEAD is not compared with MaxResponse.
func TestClient_HeadOfLargeResponse(t *testing.T) {
	url, _ := serve(t, func(_ int, w http.ResponseWriter, _ *http.Request) { w.Header().Set("Content-Length", "10485760") })
	r := do(newClient(t, httpclient.Options{}), request(t, t.Context(), http.MethodHead, url, nil))
	require.NoError(t, r.err)
	assert.Equal(t, http.StatusOK, r.status)
}

// A redirect is returned, not followed.
func TestClient_DoesNotFollowRedirects(t *testing.T) {
	url, requests := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "/elsewhere", http.StatusFound)
	})
	r := get(t, newClient(t, httpclient.Options{}), url)
	require.NoError(t, r.err)
	assert.Equal(t, http.StatusFound, r.status)
	assert.EqualValues(t, 1, requests.Load())
}

// A response that switches protocols fails the call at once: its body is the
// connection, which no deadline ends.
func TestClient_RefusesSwitchedProtocols(t *testing.T) {
	url, _ := serve(t, func(_ int, w http.ResponseWriter, _ *http.Request) {
		breakOff("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n", false)(w, nil)
	})
	r := get(t, newClient(t, httpclient.Options{}), url)
	assert.ErrorContains(t, r.err, "switches protocols")
	assert.Equal(t, 1, r.Attempts)
}

// The Record of a call has the addresses of the name, who balances calls over them, the
// address of the server and the number of attempts.
func TestRecord_AddressesPeerAttempts(t *testing.T) {
	port := kittest.FreePort()
	hosts := kittest.Loopbacks(t, 2)
	for _, host := range hosts {
		pod(t, join(host, port), 0, func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.WriteString(w, r.Context().Value(http.LocalAddrContextKey).(net.Addr).String())
		})
	}
	names.Set("record.test", hosts...)
	client := newClient(t, httpclient.Options{})
	for range 2 { // on a new connection, and on a reused one
		r := get(t, client, "http://record.test:"+port)
		require.NoError(t, r.err)
		assert.ElementsMatch(t, []string{join(hosts[0], port), join(hosts[1], port)}, r.Addresses)
		assert.Equal(t, call.BalancedByClient, r.BalancedBy)
		assert.Equal(t, r.body, r.Peer)
		assert.Equal(t, 1, r.Attempts)
	}

	names.Set("record-down.test", hosts[0])
	r := get(t, client, "http://record-down.test:"+kittest.FreePort())
	assert.Equal(t, call.Refused, r.class, "%v", r.err)
	assert.Len(t, r.Addresses, 1)
	assert.Equal(t, call.BalancedByNetwork, r.BalancedBy)
	assert.Empty(t, r.Peer)
}

// Endpoints waits for nothing, and finds the addresses without a call.
func TestEndpoints_NeedNoCall(t *testing.T) {
	names.Set("endpoints.test", "127.0.0.1", "127.0.0.2")
	client := newClient(t, httpclient.Options{})
	u, err := url.Parse("http://endpoints.test:8080")
	require.NoError(t, err)
	want := []call.Endpoint{{Addr: "127.0.0.1:8080"}, {Addr: "127.0.0.2:8080"}}
	kittest.Eventually(t, func() bool { return assert.ObjectsAreEqual(want, httpclient.Endpoints(client, u)) }, "the name is looked up")
}

// The Record's Peer is that of the last attempt: empty if it reached no server, even
// though an earlier attempt did.
func TestRecord_PeerOfLastAttempt(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	go func() { // responds once, and refuses later connections
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
	tries := r.Tries()
	require.Len(t, tries, 3)
	assert.Equal(t, l.Addr().String(), tries[0].Peer)
	assert.Equal(t, call.Unavailable, tries[0].Class)
	assert.Equal(t, "status 503", tries[0].Reason)
	assert.Empty(t, tries[2].Peer)
	assert.Equal(t, call.Refused, tries[2].Class)
	assert.Contains(t, tries[2].Reason, "connection refused")
}

// Calls are counted by outcome; attempts are timed by status.
func TestMetrics_CallsAndAttempts(t *testing.T) {
	tel := kittest.Telemetry(t, io.Discard)
	client := newClient(t, httpclient.Options{Telemetry: tel})
	url, _ := serve(t, func(n int, w http.ResponseWriter, r *http.Request) {
		switch n {
		case 1:
			ok(w, r)
		case 2: // request 3 is the retry
			w.WriteHeader(http.StatusServiceUnavailable)
		case 4:
			w.WriteHeader(http.StatusInternalServerError)
		case 5:
			w.WriteHeader(http.StatusForbidden)
		}
	})
	for range 4 {
		require.NoError(t, get(t, client, url).err)
	}
	require.Error(t, get(t, client, "http://metrics.test").err)

	text := kittest.Scrape(t, tel)
	for _, line := range []string{
		`client_calls_total{outcome="ok",peer="127.0.0.1",transport="http"} 2`,
		`client_calls_total{outcome="denied",peer="127.0.0.1",transport="http"} 1`,
		`client_calls_total{outcome="other",peer="127.0.0.1",transport="http"} 1`,
		`client_calls_total{outcome="dns",peer="metrics.test",transport="http"} 1`,
		`http_client_request_duration_seconds_count{code="200",method="GET",peer="127.0.0.1"} 2`,
		`http_client_request_duration_seconds_count{code="503",method="GET",peer="127.0.0.1"} 1`,
		`http_client_request_duration_seconds_count{code="500",method="GET",peer="127.0.0.1"} 1`,
		`http_client_request_duration_seconds_count{code="0",method="GET",peer="metrics.test"} 1`,
	} {
		assert.Contains(t, text, line+"\n")
	}
}

// All clients count in the same metrics.
func TestMetrics_SharedByClients(t *testing.T) {
	tel := kittest.Telemetry(t, io.Discard)
	url, _ := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) { ok(w, r) })
	for range 2 {
		require.NoError(t, get(t, newClient(t, httpclient.Options{Telemetry: tel}), url).err)
	}
	text := kittest.Scrape(t, tel)
	assert.Contains(t, text, `client_calls_total{outcome="ok",peer="127.0.0.1",transport="http"} 2`+"\n")
	assert.Contains(t, text, `http_client_request_duration_seconds_count{code="200",method="GET",peer="127.0.0.1"} 2`+"\n")
}

// Each attempt is a span, and the parent of the server's span.
func TestTrace_SpanForEachAttempt(t *testing.T) {
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
		assert.Equal(t, span.SpanContext.SpanID(), seen[i].SpanID(), "the server is given the span of the attempt")
		assert.Equal(t, parent.SpanContext().SpanID(), span.Parent.SpanID())
		assert.True(t, seen[i].IsSampled())
	}
	assert.NotEqual(t, seen[0].SpanID(), seen[1].SpanID())

	require.NoError(t, get(t, client, url).err)
	assert.Len(t, spans.GetSpans(), 3, "a call without a parent starts a trace")
	assert.Equal(t, spans.GetSpans()[2].SpanContext.TraceID(), seen[2].TraceID())
}

// CloseIdleConnections closes all connections and ends their goroutines.
func TestClient_CloseIdleConnections(t *testing.T) {
	url, _ := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) { ok(w, r) })
	before := goleak.IgnoreCurrent()
	client := newClient(t, httpclient.Options{})
	together(20, 10, func(int) { assert.NoError(t, get(t, client, url).err) })
	require.Error(t, goleak.Find(before), "idle connections are open")
	client.CloseIdleConnections()
	goleak.VerifyNone(t, before)
}
