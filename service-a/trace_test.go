package main

import (
	"bufio"
	"context"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"example.com/tandem/kit/kittest"
	"example.com/tandem/kit/kittest/otlp"
)

// exportTo returns the variables for a receiver. It sets them in the process, too, because
// service-a's exporter and sampler read them there: a test that uses it is not parallel.
func exportTo(t *testing.T, url, protocol string, more ...string) []string {
	t.Helper()
	environ := append([]string{
		"OTEL_EXPORTER_OTLP_ENDPOINT=" + url,
		"OTEL_EXPORTER_OTLP_PROTOCOL=" + protocol,
		"OTEL_BSP_SCHEDULE_DELAY=100",
	}, more...)
	for _, pair := range environ {
		key, value, _ := strings.Cut(pair, "=")
		t.Setenv(key, value)
	}
	return environ
}

// startTraced starts n instances of service-b and a service-a that call a receiver.
func startTraced(t *testing.T, n int, protocol string, more ...string) (*otlp.Receiver, *kittest.Service, []*pod) {
	t.Helper()
	received, url := kittest.StartReceiver(t, protocol)
	environ := exportTo(t, url, protocol, more...)
	name := hostOf(t)
	addrs := kittest.Loopbacks(t, n)
	bs := make([]*pod, n)
	for i, addr := range addrs {
		bs[i] = startB(t, fmt.Sprintf("b-%d", i+1), addr, environ...)
	}
	dns.Set(name, addrs...)
	return received, startA(t, name, environ...), bs
}

// assertTree waits until a trace has as many spans as want has lines, and compares them.
func assertTree(t *testing.T, received *otlp.Receiver, traceID, want string) {
	t.Helper()
	want = strings.TrimPrefix(want, "\n")
	kittest.Eventually(t, func() bool { return len(received.Trace(traceID)) >= strings.Count(want, "\n") }, "the receiver has all spans")
	assert.Equal(t, want, otlp.Tree(received.Trace(traceID)))
}

// getTraced sends a request as a client that has a trace, and returns the trace id and the response.
func getTraced(t *testing.T, ctx context.Context, url, flags string) (traceID string, resp *http.Response) {
	t.Helper()
	id := make([]byte, 16)
	for i := range id {
		id[i] = byte(1 + rand.IntN(255))
	}
	traceID = hex.EncodeToString(id)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	require.NoError(t, err)
	req.Header.Set("Traceparent", "00-"+traceID+"-00f067aa0ba902b7-"+flags)
	transport := &http.Transport{DisableKeepAlives: true}
	resp, err = transport.RoundTrip(req)
	require.NoError(t, err)
	t.Cleanup(func() { _ = resp.Body.Close() })
	return traceID, resp
}

// A call through both services is one trace, over both transports. Each attempt is a span,
// and that of a retry has its number. A span of service-b is the child of the attempt that
// reached it.
func TestPair_CallIsOneTrace(t *testing.T) {
	received, a, bs := startTraced(t, 1, "grpc")
	for transport, want := range map[string]string{"http": `
service-a server GET /api/data
  service-a client HTTP GET
    service-b server GET /api/data
`, "grpc": `
service-a server GET /api/data
  service-a client data.v1.DataService/GetData
    service-b server data.v1.DataService/GetData
`} {
		t.Run(transport, func(t *testing.T) {
			_, _, got := getData(t, a, "via="+transport)
			assertTree(t, received, got.Call.TraceID, want)
			for _, span := range received.Trace(got.Call.TraceID) {
				if span.Kind == "client" && transport == "http" {
					assert.Equal(t, bs[0].addr, span.Attributes["network.peer.address"])
				}
			}
		})
	}
	bs[0].setFault(t, `{"errorRate":1}`)
	for transport, want := range map[string]string{"http": `
service-a server GET /api/data failed
  service-a client HTTP GET failed
    service-b server GET /api/data failed
  service-a client HTTP GET retry 1 failed
    service-b server GET /api/data failed
  service-a client HTTP GET retry 2 failed
    service-b server GET /api/data failed
`, "grpc": `
service-a server GET /api/data failed
  service-a client data.v1.DataService/GetData failed
    service-b server data.v1.DataService/GetData failed
  service-a client data.v1.DataService/GetData retry 1 failed
    service-b server data.v1.DataService/GetData failed
  service-a client data.v1.DataService/GetData retry 2 failed
    service-b server data.v1.DataService/GetData failed
`} {
		t.Run(transport+", failed attempts", func(t *testing.T) {
			id, resp := getTraced(t, t.Context(), a.URL+"/api/data?via="+transport, "01")
			assert.Equal(t, http.StatusServiceUnavailable, resp.StatusCode)
			assertTree(t, received, id, want)
		})
	}
	dns.Set(hostOf(t))
	bs[0].stop(t)
	for transport, name := range map[string]string{"http": "HTTP GET", "grpc": "data.v1.DataService/GetData"} {
		t.Run(transport+", no server", func(t *testing.T) {
			var id string
			kittest.Eventually(t, func() bool { // until the client knows that the name has no address
				var resp *http.Response
				id, resp = getTraced(t, t.Context(), a.URL+"/api/data?via="+transport, "01")
				body := bufio.NewScanner(resp.Body)
				return body.Scan() && strings.Contains(body.Text(), `"class":"dns"`)
			}, "calls have class dns")
			// More attempts follow if the client still knew the address.
			want := regexp.MustCompile("^service-a server GET /api/data failed\n  service-a client " + regexp.QuoteMeta(name) + " failed\n")
			kittest.Eventually(t, func() bool { return want.MatchString(otlp.Tree(received.Trace(id))) }, "the trace has the failed attempt")
		})
	}
}

// A stream through both services is one trace, and so is one whose client disconnects.
func TestPair_StreamIsOneTrace(t *testing.T) {
	received, a, _ := startTraced(t, 1, "http/protobuf")
	ctx, disconnect := context.WithCancel(t.Context())
	defer disconnect()
	id, resp := getTraced(t, ctx, a.URL+"/api/stream?interval=100ms", "01")
	lines := bufio.NewScanner(resp.Body)
	for n := 0; n < 2 && lines.Scan(); {
		if strings.HasPrefix(lines.Text(), "event: data") {
			n++
		}
	}
	disconnect()
	// The client of the canceled call counts it as failed, and the server does not.
	assertTree(t, received, id, `
service-a server GET /api/stream
  service-a client data.v1.DataService/WatchData failed
    service-b server data.v1.DataService/WatchData
`)
}

// A client's tracestate and baggage, as large as service-a accepts them, make no call fail.
func TestPair_AcceptsLargeTraceHeaders(t *testing.T) {
	t.Parallel()
	a, _, _ := startPair(t, 2)
	members := func(size int) string {
		list := make([]string, 30)
		for i := range list {
			list[i] = fmt.Sprintf("k%d=%s", i, strings.Repeat("v", size))
		}
		return strings.Join(list, ",")
	}
	for _, via := range transports {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, a.URL+"/api/data?via="+via, nil)
		require.NoError(t, err)
		req.Header.Set("Traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00")
		req.Header.Set("Tracestate", members(250))
		req.Header.Set("Baggage", members(265))
		code, _, body := kittest.Do(t, req)
		assert.Equal(t, http.StatusOK, code, body)
	}
}

// Health requests, scrapes and requests to the fault switch make no spans, nor do the calls
// of the checks behind /health, and the clients' watches of gRPC health.
func TestTraces_LeaveOutProbes(t *testing.T) {
	received, a, bs := startTraced(t, 2, "grpc")
	for range 3 {
		for _, url := range []string{a.URL, "http://" + bs[0].addr + ":" + httpPort} {
			for _, path := range []string{"/livez", "/readyz", "/health"} {
				code, _, _ := kittest.Get(t, url+path)
				assert.Equal(t, http.StatusOK, code, path)
			}
		}
		for _, url := range []string{bs[0].addr + ":" + adminPort + "/metrics", bs[0].addr + ":" + httpPort + "/faults"} {
			code, _, _ := kittest.Get(t, "http://"+url)
			assert.Equal(t, http.StatusOK, code, url)
		}
	}
	var calls []string
	for _, transport := range transports {
		_, _, got := getData(t, a, "via="+transport)
		calls = append(calls, got.Call.TraceID)
		kittest.Eventually(t, func() bool { return len(received.Trace(got.Call.TraceID)) >= 3 }, "the receiver has the spans of the call")
	}
	for _, span := range received.Spans() {
		assert.Contains(t, calls, span.TraceID, "%+v", span)
	}
}

// A sampler that is not parent-based ignores that the checks behind /health are not sampled:
// each of their calls is a trace.
func TestTraces_OtherSamplerTracesChecks(t *testing.T) {
	received, a, _ := startTraced(t, 1, "grpc", "OTEL_TRACES_SAMPLER=always_on")
	code, _, _ := kittest.Get(t, a.URL+"/health")
	require.Equal(t, http.StatusOK, code)
	kittest.Eventually(t, func() bool { return len(received.Spans()) >= 2*len(transports) }, "the checks make spans in both services")
	trees := map[string]bool{}
	for _, span := range received.Spans() {
		trees[otlp.Tree(received.Trace(span.TraceID))] = true
	}
	assert.Equal(t, map[string]bool{
		"service-a client HTTP GET\n  service-b server GET /api/data\n":                                  true,
		"service-a client data.v1.DataService/GetData\n  service-b server data.v1.DataService/GetData\n": true,
	}, trees)
}

// The services pass traces on in the W3C headers, whatever OTEL_PROPAGATORS says.
func TestTraces_IgnorePropagators(t *testing.T) {
	received, a, _ := startTraced(t, 1, "grpc", "OTEL_PROPAGATORS=b3")
	for _, transport := range transports {
		id, _ := getTraced(t, t.Context(), a.URL+"/api/data?via="+transport, "01")
		kittest.Eventually(t, func() bool { return len(received.Trace(id)) == 3 }, "both services continue the client's trace")
	}
}

// With a sampler that takes 1 % of the traces, both services keep a call, or neither does.
// A client that has decided is followed.
func TestTraces_SampledInBothOrNeither(t *testing.T) {
	received, a, _ := startTraced(t, 1, "grpc", "OTEL_TRACES_SAMPLER=parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG=0.01")
	const n, workers = 2000, 8 // 20 of them are sampled; none is, once in 500 million runs
	var wg sync.WaitGroup
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: workers}}
	defer client.CloseIdleConnections()
	for w := range workers {
		wg.Go(func() {
			for range n / workers {
				req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, a.URL+"/api/data?via="+transports[w%2], nil)
				if !assert.NoError(t, err) {
					return
				}
				resp, err := client.Do(req)
				if !assert.NoError(t, err) {
					return
				}
				_ = resp.Body.Close() // only the spans matter
			}
		})
	}
	wg.Wait()
	sampled, _ := getTraced(t, t.Context(), a.URL+"/api/data?via=grpc", "01")
	dropped, _ := getTraced(t, t.Context(), a.URL+"/api/data?via=grpc", "00")
	kittest.Eventually(t, func() bool { return len(received.Trace(sampled)) == 3 }, "the client's trace arrives")
	assert.Empty(t, received.Trace(dropped))
	count := func() (traces int, partial []string) {
		spans := map[string]int{}
		for _, s := range received.Spans() {
			spans[s.TraceID]++
		}
		for id, n := range spans {
			if n != 3 {
				partial = append(partial, id)
			}
		}
		return len(spans), partial
	}
	kittest.Eventually(t, func() bool { _, partial := count(); return len(partial) == 0 }, "every trace has the spans of both services")
	traces, _ := count()
	t.Logf("%d of %d calls were sampled", traces-1, n)
	assert.Greater(t, traces, 1)
	assert.Less(t, traces, n/10)
}

var exemplar = regexp.MustCompile(`(?m)^(\w+)_bucket\{.*# \{trace_id="([0-9a-f]{32})"\}`)

// Each latency histogram has exemplars, in OpenMetrics only. Their traces are at the receiver.
func TestTraces_ExemplarsLeadToTraces(t *testing.T) {
	received, a, bs := startTraced(t, 1, "grpc", "OTEL_TRACES_SAMPLER=parentbased_always_off")
	var sampled []string
	for _, transport := range transports {
		id, _ := getTraced(t, t.Context(), a.URL+"/api/data?via="+transport, "01")
		sampled = append(sampled, id)
		kittest.Eventually(t, func() bool { return len(received.Trace(id)) == 3 }, "the trace arrives")
		getTraced(t, t.Context(), a.URL+"/api/data?via="+transport, "00") // later, and must not replace the exemplar
	}
	for admin, want := range map[string][]string{
		a.AdminURL:                               {"http_server_request_duration_seconds", "http_client_request_duration_seconds", "grpc_client_handling_seconds"},
		"http://" + bs[0].addr + ":" + adminPort: {"http_server_request_duration_seconds", "grpc_server_handling_seconds"},
	} {
		var got []string
		for _, match := range exemplar.FindAllStringSubmatch(scrapeAs(t, admin, "application/openmetrics-text; version=1.0.0"), -1) {
			got = append(got, match[1])
			assert.Contains(t, sampled, match[2], match[0])
		}
		slices.Sort(got)
		assert.Subset(t, slices.Compact(got), want)
		assert.NotContains(t, scrapeAs(t, admin, "text/plain"), "trace_id")
	}
}

// Without an endpoint for traces, there are no exemplars, even for a client's sampled trace.
func TestTraces_NoExemplarWithoutExport(t *testing.T) {
	a, bs, _ := startPair(t, 1)
	getTraced(t, t.Context(), a.URL+"/api/data?via=grpc", "01")
	for _, admin := range []string{a.AdminURL, "http://" + bs[0].addr + ":" + adminPort} {
		assert.NotContains(t, scrapeAs(t, admin, "application/openmetrics-text; version=1.0.0"), "trace_id")
	}
}

func scrapeAs(t *testing.T, admin, accept string) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, admin+"/metrics", nil)
	require.NoError(t, err)
	req.Header.Set("Accept", accept)
	code, _, body := kittest.Do(t, req)
	require.Equal(t, http.StatusOK, code)
	return body
}

// A receiver that refuses connections, or accepts them and never responds, costs no call.
// Spans beyond the queue are dropped, and the service stops in time.
func TestTraces_BrokenReceiverCostsNoCall(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer silent.Close() //nolint:errcheck // nothing was sent
	for state, addr := range map[string]string{"closed": "127.0.0.1:" + kittest.FreePort(), "silent": silent.Addr().String()} {
		for _, protocol := range []string{"grpc", "http/protobuf"} {
			t.Run(state+", "+protocol, func(t *testing.T) {
				t.Parallel()
				name, addrs := hostOf(t), kittest.Loopbacks(t, 1)
				b := startB(t, "b-1", addrs[0], "OTEL_EXPORTER_OTLP_ENDPOINT=http://"+addr, "OTEL_EXPORTER_OTLP_PROTOCOL="+protocol,
					"OTEL_BSP_SCHEDULE_DELAY=10", "OTEL_BSP_MAX_QUEUE_SIZE=16", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE=8")
				dns.Set(name, addrs...)
				a := startA(t, name)
				for _, via := range transports {
					got := getSpread(t, a, via, 300)
					assert.Empty(t, got.Errors)
					assert.Equal(t, map[string]int{"b-1": 300}, got.Pods)
				}
				b.stop(t) // with status 0, within a pod's grace period
			})
		}
	}
}
