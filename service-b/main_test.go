package main

import (
	"bytes"
	"context"
	"net"
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
	"google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"example.com/tandem/kit/kittest"
	"example.com/tandem/kit/lifecycle"
	datav1 "example.com/tandem/proto/data/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// environ is that of a service-b on free ports which drains at once.
func environ(t *testing.T) map[string]string {
	return map[string]string{
		"HTTP_ADDR":   "127.0.0.1:" + kittest.FreePort(),
		"GRPC_ADDR":   "127.0.0.1:" + kittest.FreePort(),
		"ADMIN_ADDR":  "127.0.0.1:" + kittest.FreePort(),
		"DEBUG_ADDR":  "127.0.0.1:" + kittest.FreePort(),
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

// setFault sets the fault of the service whose DEBUG_ADDR is debug.
func setFault(t *testing.T, debug, fault string) {
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, "http://"+debug+"/faults", strings.NewReader(fault))
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
	setFault(t, env["DEBUG_ADDR"], `{"latency":"1m"}`)
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
	setFault(t, env["DEBUG_ADDR"], `{"latency":"1m"}`)
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
	assert.Equal(t, 2, lifecycle.ExitCode(err))
	assert.Contains(t, err.Error(), `DRAIN_DELAY="5"`)

	env["DRAIN_DELAY"] = "5s"
	err = run(t.Context(), nil, env, &bytes.Buffer{})
	require.Error(t, err)
	assert.Equal(t, []string{
		`MAX_IN_FLIGHT="0": want 1 or more`,
		`GRPC_ADDR="9090": want host:port or :port, such as :8080`,
	}, strings.Split(err.Error(), "\n"))
}

// FAULT is a fault that every instance has from its start, so that new pods of a
// rollout have it too.
func TestFault_IsSetFromTheStart(t *testing.T) {
	env := environ(t)
	env["FAULT"] = `{"errorRate":1}`
	b := kittest.Serve(t, run, env)
	code, _, body := kittest.Get(t, b.URL+"/api/data")
	assert.Equal(t, http.StatusServiceUnavailable, code, body)
	_, err := client(t, env["GRPC_ADDR"]).GetData(t.Context(), &datav1.GetDataRequest{})
	assert.Equal(t, codes.Unavailable, status.Code(err), err)

	var out bytes.Buffer
	require.NoError(t, run(t.Context(), []string{"fault", "off"}, env, &out), "the subcommand, as in a container")
	code, _, body = kittest.Get(t, b.URL+"/api/data")
	assert.Equal(t, http.StatusOK, code, body)
}

// The port that Prometheus may reach can neither break the service nor show its
// memory, and without FAULTS and PPROF there is no other.
func TestAdminPort_HasNoFaultSwitch(t *testing.T) {
	env := environ(t)
	env["PPROF"] = "on"
	kittest.Serve(t, run, env)
	for _, path := range []string{"/faults", "/debug/pprof/"} {
		code, _, _ := kittest.Get(t, "http://"+env["ADMIN_ADDR"]+path)
		assert.Equal(t, http.StatusNotFound, code, path)
		code, _, _ = kittest.Get(t, "http://"+env["DEBUG_ADDR"]+path)
		assert.Equal(t, http.StatusOK, code, path)
	}

	env = environ(t)
	delete(env, "FAULTS")
	kittest.Serve(t, run, env)
	conn, err := net.Dial("tcp", env["DEBUG_ADDR"])
	if !assert.Error(t, err, "DEBUG_ADDR is not opened") {
		assert.NoError(t, conn.Close())
	}
}

// A misspelled setting is named in the log, with the one that was meant.
func TestStart_WarnsOfMisspelledSettings(t *testing.T) {
	env := environ(t)
	env["MESAGE"] = "hi"
	b := kittest.Serve(t, run, env)
	assert.Contains(t, b.Log.String(), `"name":"MESAGE","nearest":"MESSAGE"`)
	assert.Equal(t, 1, strings.Count(b.Log.String(), `"level":"WARN"`))
}

// By default, /health does not say where the instance runs, and gRPC does not list
// its services; a call still says which instance served it.
func TestDetails_AreShownOnlyIfOn(t *testing.T) {
	for _, on := range []string{"off", "on"} {
		env := environ(t)
		env["HEALTH_DETAILS"], env["REFLECTION"], env["NODE_NAME"] = on, on, "node-7"
		b := kittest.Serve(t, run, env)
		_, _, body := kittest.Get(t, b.URL+"/health")
		assert.Equal(t, on == "on", strings.Contains(body, "node-7"), body)
		_, _, body = kittest.Get(t, b.URL+"/api/data")
		assert.Contains(t, body, "node-7")

		conn, err := grpc.NewClient(env["GRPC_ADDR"], grpc.WithTransportCredentials(insecure.NewCredentials()))
		require.NoError(t, err)
		stream, err := grpc_reflection_v1.NewServerReflectionClient(conn).ServerReflectionInfo(t.Context())
		require.NoError(t, err)
		_ = stream.Send(&grpc_reflection_v1.ServerReflectionRequest{ // Recv returns the error, if there is one
			MessageRequest: &grpc_reflection_v1.ServerReflectionRequest_ListServices{},
		})
		_, err = stream.Recv()
		assert.Equal(t, map[string]codes.Code{"on": codes.OK, "off": codes.Unimplemented}[on], status.Code(err), "%v", err)
		require.NoError(t, conn.Close())
	}
}

func TestAPortThatIsTakenStopsTheStart(t *testing.T) {
	env := environ(t)
	kittest.Serve(t, run, env)
	other := environ(t)
	other["GRPC_ADDR"] = env["GRPC_ADDR"]
	err := run(t.Context(), nil, other, &bytes.Buffer{})
	require.ErrorContains(t, err, "GRPC_ADDR: listen tcp "+env["GRPC_ADDR"])
	assert.Equal(t, 1, lifecycle.ExitCode(err))
}
