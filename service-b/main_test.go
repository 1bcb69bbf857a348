package main

import (
	"bytes"
	"context"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"example.com/tandem/kit/kittest"
	"example.com/tandem/kit/life"
	datav1 "example.com/tandem/proto/data/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// environ is that of a service-b on free ports which drains at once.
func environ(t *testing.T) map[string]string {
	return map[string]string{
		"HTTP_ADDR":   "127.0.0.1:" + kittest.FreePort(),
		"GRPC_ADDR":   "127.0.0.1:" + kittest.FreePort(),
		"ADMIN_ADDR":  "127.0.0.1:" + kittest.FreePort(),
		"DRAIN_DELAY": "0s",
		"FAULTS":      "on",
		"POD_NAME":    "b-1",
		"MESSAGE":     "hello",
	}
}

func client(t *testing.T, addr string) datav1.DataServiceClient {
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, conn.Close()) })
	return datav1.NewDataServiceClient(conn)
}

// setFault throws the fault switch on the admin port.
func setFault(t *testing.T, admin, fault string) {
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, "http://"+admin+"/faults", strings.NewReader(fault))
	require.NoError(t, err)
	code, _, body := kittest.Do(t, req)
	require.Equal(t, http.StatusOK, code, body)
}

func TestBothTransportsSpeakOneContract(t *testing.T) {
	env := environ(t)
	b := kittest.Serve(t, run, env)
	for _, key := range []string{"", "ada", "two words & 語"} {
		query := ""
		if key != "" {
			query = "?key=" + url.QueryEscape(key)
		}
		code, header, body := kittest.Get(t, b.URL+"/api/data"+query)
		require.Equal(t, http.StatusOK, code, body)
		assert.Equal(t, "application/json", header.Get("Content-Type"))
		assert.Equal(t, "nosniff", header.Get("X-Content-Type-Options"))
		overHTTP := &datav1.GetDataResponse{}
		require.NoError(t, protojson.Unmarshal([]byte(body), overHTTP), "strictly: no field that the contract lacks")

		overGRPC, err := client(t, env["GRPC_ADDR"]).GetData(t.Context(), &datav1.GetDataRequest{Key: key})
		require.NoError(t, err)
		assert.Equal(t, "b-1", overGRPC.GetData().GetServedBy().GetPod())

		overHTTP.Data.ServedAt, overGRPC.Data.ServedAt = nil, nil // the one thing that differs
		assert.True(t, proto.Equal(overHTTP, overGRPC), "HTTP: %v\ngRPC: %v", overHTTP, overGRPC)
	}
}

func TestBadInputIsRefusedOverHTTP(t *testing.T) {
	b := kittest.Serve(t, run, environ(t))
	for name, c := range map[string]struct {
		method, path string
		status       int
	}{
		"empty key":         {"GET", "/api/data?key=", 400},
		"key of 65":         {"GET", "/api/data?key=" + strings.Repeat("k", 65), 400},
		"control character": {"GET", "/api/data?key=a%0Ab", 400},
		"broken UTF-8":      {"GET", "/api/data?key=%ff", 400},
		"unknown path":      {"GET", "/api/nothing", 404},
		"wrong method":      {"POST", "/api/data", 405},
	} {
		t.Run(name, func(t *testing.T) {
			req, err := http.NewRequestWithContext(t.Context(), c.method, b.URL+c.path, nil)
			require.NoError(t, err)
			code, header, body := kittest.Do(t, req)
			assert.Equal(t, c.status, code, body)
			assert.Equal(t, "application/problem+json", header.Get("Content-Type"))
		})
	}
}

func TestBadInputIsRefusedOverGRPC(t *testing.T) {
	env := environ(t)
	kittest.Serve(t, run, env)
	c := client(t, env["GRPC_ADDR"])
	_, err := c.GetData(t.Context(), &datav1.GetDataRequest{Key: strings.Repeat("k", 65)})
	assert.Equal(t, codes.InvalidArgument, status.Code(err), err)

	for _, req := range []*datav1.WatchDataRequest{{Key: "\n"}, {Interval: durationpb.New(time.Millisecond)}} {
		stream, err := c.WatchData(t.Context(), req)
		require.NoError(t, err)
		_, err = stream.Recv()
		assert.Equal(t, codes.InvalidArgument, status.Code(err), err)
	}
}

// A caller that leaves is seen in the log, as the end of its call, long before
// the latency of a minute is over.
func TestWhenTheCallerLeavesTheWorkStops(t *testing.T) {
	env := environ(t)
	b := kittest.Serve(t, run, env)
	setFault(t, env["ADMIN_ADDR"], `{"latency":"1m"}`)
	overGRPC := client(t, env["GRPC_ADDR"])
	for transport, c := range map[string]struct {
		ask  func(context.Context) error
		seen string
	}{
		"grpc": {func(ctx context.Context) error {
			_, err := overGRPC.GetData(ctx, &datav1.GetDataRequest{})
			return err
		}, `"code":"Canceled"`},
		"http": {func(ctx context.Context) error {
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, b.URL+"/api/data", nil)
			require.NoError(t, err)
			_, err = (&http.Transport{}).RoundTrip(req)
			return err
		}, `"status":499`},
	} {
		t.Run(transport, func(t *testing.T) {
			// Only the log tells that a call has arrived, so one that left too
			// soon to arrive is made again.
			kittest.Eventually(t, func() bool {
				ctx, leave := context.WithCancel(t.Context())
				time.AfterFunc(100*time.Millisecond, leave)
				require.Error(t, c.ask(ctx))
				return strings.Contains(b.Log.String(), c.seen)
			}, c.seen)
		})
	}
}

// The caller's deadline ends the work on both sides.
func TestDeadline_EndsTheWork(t *testing.T) {
	env := environ(t)
	b := kittest.Serve(t, run, env)
	setFault(t, env["ADMIN_ADDR"], `{"latency":"1m"}`)
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	_, err := client(t, env["GRPC_ADDR"]).GetData(ctx, &datav1.GetDataRequest{})
	assert.Equal(t, codes.DeadlineExceeded, status.Code(err))
	kittest.Eventually(t, func() bool { return strings.Contains(b.Log.String(), `"code":"DeadlineExceeded"`) }, "the log says why")
}

func TestAStreamDoesNotHoldTheExit(t *testing.T) {
	env := environ(t)
	b := kittest.Serve(t, run, env)
	stream, err := client(t, env["GRPC_ADDR"]).WatchData(t.Context(), &datav1.WatchDataRequest{Interval: durationpb.New(time.Minute)})
	require.NoError(t, err)
	first, err := stream.Recv()
	require.NoError(t, err)
	assert.Equal(t, uint32(1), first.GetSequence())

	require.NoError(t, b.Stop(), "calls that had to be cut off would be an error")
	_, err = stream.Recv()
	assert.Equal(t, codes.Unavailable, status.Code(err), "so that the client connects elsewhere")
}

func TestMetricsAreWellNamedAndBounded(t *testing.T) {
	env := environ(t)
	b := kittest.Serve(t, run, env)
	for _, path := range []string{"/api/data?key=a-secret-key", "/api/data/another/raw/path", "/health"} {
		kittest.Get(t, b.URL+path)
	}
	_, err := client(t, env["GRPC_ADDR"]).GetData(t.Context(), &datav1.GetDataRequest{Key: "a-secret-key"})
	require.NoError(t, err)

	code, _, body := kittest.Get(t, "http://"+env["ADMIN_ADDR"]+"/metrics")
	require.Equal(t, http.StatusOK, code)
	problems, err := promlint.New(bytes.NewReader([]byte(body))).Lint()
	require.NoError(t, err)
	assert.Empty(t, problems)
	for _, metric := range []string{
		`http_server_request_duration_seconds_count{code="200",method="GET",route="/api/data"} 1`,
		`http_server_request_duration_seconds_count{code="404",method="GET",route="unmatched"} 1`,
		`grpc_server_handled_total{grpc_code="OK",grpc_method="GetData",grpc_service="data.v1.DataService",grpc_type="unary"} 1`,
		`build_info{service="service-b"`,
		"go_goroutines", "process_resident_memory_bytes",
	} {
		assert.Contains(t, body, metric)
	}
	assert.NotContains(t, body, "secret")
	assert.NotContains(t, body, "another")
	assert.NotContains(t, b.Log.String(), "secret", "queries are not logged")
}

func TestABadConfigurationStopsTheStart(t *testing.T) {
	env := environ(t)
	env["GRPC_ADDR"], env["DRAIN_DELAY"], env["MAX_IN_FLIGHT"] = "9090", "5", "0"
	err := run(t.Context(), nil, env, &bytes.Buffer{})
	require.Error(t, err)
	assert.Equal(t, 2, life.ExitCode(err))
	assert.Contains(t, err.Error(), `DRAIN_DELAY="5"`)

	env["DRAIN_DELAY"] = "5s"
	err = run(t.Context(), nil, env, &bytes.Buffer{})
	require.Error(t, err)
	assert.Equal(t, []string{
		`MAX_IN_FLIGHT="0": want 1 or more`,
		`GRPC_ADDR="9090": want host:port or :port, such as :8080`,
	}, strings.Split(err.Error(), "\n"))
}

func TestAPortThatIsTakenStopsTheStart(t *testing.T) {
	env := environ(t)
	kittest.Serve(t, run, env)
	other := environ(t)
	other["GRPC_ADDR"] = env["GRPC_ADDR"]
	err := run(t.Context(), nil, other, &bytes.Buffer{})
	require.ErrorContains(t, err, "GRPC_ADDR: listen tcp "+env["GRPC_ADDR"])
	assert.Equal(t, 1, life.ExitCode(err))
}
