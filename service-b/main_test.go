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
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
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

// environ returns the environment of a service-b that listens on free ports and
// drains without delay.
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

func newClient(t *testing.T, addr string) datav1.DataServiceClient {
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, conn.Close()) })
	return datav1.NewDataServiceClient(conn)
}

// setFault sets the fault of the service that listens on debugAddr.
func setFault(t *testing.T, debugAddr, fault string) {
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, "http://"+debugAddr+"/faults", strings.NewReader(fault))
	require.NoError(t, err)
	code, _, body := kittest.Do(t, req)
	require.Equal(t, http.StatusOK, code, body)
}

// Both transports return the same message.
func TestTransports_ReturnSameMessage(t *testing.T) {
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
		require.NoError(t, protojson.Unmarshal([]byte(body), overHTTP), "an unknown field is an error")

		overGRPC, err := newClient(t, env["GRPC_ADDR"]).GetData(t.Context(), &datav1.GetDataRequest{Key: key})
		require.NoError(t, err)
		assert.Equal(t, "b-1", overGRPC.GetData().GetServedBy().GetPod())

		overHTTP.Data.ServedAt, overGRPC.Data.ServedAt = nil, nil // the only difference
		assert.True(t, proto.Equal(overHTTP, overGRPC), "HTTP: %v\ngRPC: %v", overHTTP, overGRPC)
	}
}

func TestHTTP_RejectsInvalidRequests(t *testing.T) {
	b := kittest.Serve(t, run, environ(t))
	for name, c := range map[string]struct {
		method, path string
		status       int
	}{
		"empty key":         {path: "/api/data?key=", status: 400},
		"long key":          {path: "/api/data?key=" + strings.Repeat("k", 65), status: 400},
		"control character": {path: "/api/data?key=a%0Ab", status: 400},
		"invalid UTF-8":     {path: "/api/data?key=%ff", status: 400},
		"unknown path":      {path: "/api/nothing", status: 404},
		"wrong method":      {method: http.MethodPost, path: "/api/data", status: 405},
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

func TestGRPC_RejectsInvalidRequests(t *testing.T) {
	env := environ(t)
	kittest.Serve(t, run, env)
	c := newClient(t, env["GRPC_ADDR"])
	_, err := c.GetData(t.Context(), &datav1.GetDataRequest{Key: strings.Repeat("k", 65)})
	assert.Equal(t, codes.InvalidArgument, status.Code(err), err)

	for _, req := range []*datav1.WatchDataRequest{{Key: "\n"}, {Interval: durationpb.New(time.Millisecond)}} {
		stream, err := c.WatchData(t.Context(), req)
		require.NoError(t, err)
		_, err = stream.Recv()
		assert.Equal(t, codes.InvalidArgument, status.Code(err), err)
	}
}

// A call ends when its caller cancels it. The log shows the end long before the
// injected latency of a minute has passed.
func TestCancel_EndsTheCall(t *testing.T) {
	env := environ(t)
	b := kittest.Serve(t, run, env)
	setFault(t, env["DEBUG_ADDR"], `{"latency":"1m"}`)
	overGRPC := newClient(t, env["GRPC_ADDR"])
	for transport, c := range map[string]struct {
		call     func(context.Context) error
		logEntry string
	}{
		"grpc": {
			call: func(ctx context.Context) error {
				_, err := overGRPC.GetData(ctx, &datav1.GetDataRequest{})
				return err
			},
			logEntry: `"code":"Canceled"`,
		},
		"http": {
			call: func(ctx context.Context) error {
				req, err := http.NewRequestWithContext(ctx, http.MethodGet, b.URL+"/api/data", nil)
				require.NoError(t, err)
				_, err = (&http.Transport{}).RoundTrip(req)
				return err
			},
			logEntry: `"status":499`,
		},
	} {
		t.Run(transport, func(t *testing.T) {
			// A call that was canceled before it reached service-b leaves no log entry.
			// The test then calls again.
			kittest.Eventually(t, func() bool {
				ctx, cancel := context.WithCancel(t.Context())
				time.AfterFunc(100*time.Millisecond, cancel)
				require.Error(t, c.call(ctx))
				return strings.Contains(b.Log.String(), c.logEntry)
			}, "the log contains "+c.logEntry)
		})
	}
}

// A call ends when the deadline of its caller passes.
func TestDeadline_EndsTheCall(t *testing.T) {
	env := environ(t)
	b := kittest.Serve(t, run, env)
	setFault(t, env["DEBUG_ADDR"], `{"latency":"1m"}`)
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	_, err := newClient(t, env["GRPC_ADDR"]).GetData(ctx, &datav1.GetDataRequest{})
	assert.Equal(t, codes.DeadlineExceeded, status.Code(err))
	kittest.CallWithDeadline(t, env["GRPC_ADDR"], datav1.DataService_GetData_FullMethodName, 300*time.Millisecond)
	kittest.Eventually(t, func() bool { return strings.Contains(b.Log.String(), `"code":"DeadlineExceeded"`) }, "the log contains DeadlineExceeded")
}

// Open streams do not delay the end of the process.
func TestStop_EndsStreams(t *testing.T) {
	env := environ(t)
	b := kittest.Serve(t, run, env)
	stream, err := newClient(t, env["GRPC_ADDR"]).WatchData(t.Context(), &datav1.WatchDataRequest{Interval: durationpb.New(time.Minute)})
	require.NoError(t, err)
	first, err := stream.Recv()
	require.NoError(t, err)
	assert.Equal(t, uint32(1), first.GetSequence())

	require.NoError(t, b.Stop(), "Stop returns an error if calls were cut off")
	_, err = stream.Recv()
	assert.Equal(t, codes.Unavailable, status.Code(err), "the client opens a stream to another instance")
}

// Metric names follow the conventions, and labels hold no value from a request.
func TestMetrics_AreNamedAndBounded(t *testing.T) {
	env := environ(t)
	b := kittest.Serve(t, run, env)
	for _, path := range []string{"/api/data?key=a-secret-key", "/api/data/another/raw/path", "/health"} {
		kittest.Get(t, b.URL+path)
	}
	_, err := newClient(t, env["GRPC_ADDR"]).GetData(t.Context(), &datav1.GetDataRequest{Key: "a-secret-key"})
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
	assert.NotContains(t, b.Log.String(), "secret", "the log does not contain queries")
}

func TestStart_FailsOnInvalidConfiguration(t *testing.T) {
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

// FAULT sets a fault at the start, so new pods of a rollout have it too.
func TestFault_IsSetAtStart(t *testing.T) {
	env := environ(t)
	env["FAULT"] = `{"errorRate":1}`
	b := kittest.Serve(t, run, env)
	code, _, body := kittest.Get(t, b.URL+"/api/data")
	assert.Equal(t, http.StatusServiceUnavailable, code, body)
	_, err := newClient(t, env["GRPC_ADDR"]).GetData(t.Context(), &datav1.GetDataRequest{})
	assert.Equal(t, codes.Unavailable, status.Code(err), err)

	var out bytes.Buffer
	require.NoError(t, run(t.Context(), []string{"fault", "off"}, env, &out), "the subcommand fault switches the fault off")
	code, _, body = kittest.Get(t, b.URL+"/api/data")
	assert.Equal(t, http.StatusOK, code, body)
}

// The fault switch and pprof are served at DEBUG_ADDR, never on the port that
// Prometheus scrapes. Without FAULTS and PPROF nothing listens at DEBUG_ADDR.
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
	if !assert.Error(t, err, "nothing listens at DEBUG_ADDR") {
		assert.NoError(t, conn.Close())
	}
}

// The log names a misspelled setting, and the setting with the nearest name.
func TestStart_WarnsOfMisspelledSettings(t *testing.T) {
	env := environ(t)
	env["MESAGE"] = "hi"
	b := kittest.Serve(t, run, env)
	assert.Contains(t, b.Log.String(), `"name":"MESAGE","nearest":"MESSAGE"`)
	assert.Equal(t, 1, strings.Count(b.Log.String(), `"level":"WARN"`))
}

// By default, /health does not say where the instance runs, and gRPC reflection is
// off. The response to a call always names the instance.
func TestDetails_AreOffByDefault(t *testing.T) {
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
		_ = stream.Send(&grpc_reflection_v1.ServerReflectionRequest{ // Recv returns the error, if any
			MessageRequest: &grpc_reflection_v1.ServerReflectionRequest_ListServices{},
		})
		_, err = stream.Recv()
		assert.Equal(t, map[string]codes.Code{"on": codes.OK, "off": codes.Unimplemented}[on], status.Code(err), "%v", err)
		require.NoError(t, conn.Close())
	}
}

func TestStart_FailsOnPortInUse(t *testing.T) {
	env := environ(t)
	kittest.Serve(t, run, env)
	other := environ(t)
	other["GRPC_ADDR"] = env["GRPC_ADDR"]
	err := run(t.Context(), nil, other, &bytes.Buffer{})
	require.ErrorContains(t, err, "GRPC_ADDR: listen tcp "+env["GRPC_ADDR"])
	assert.Equal(t, 1, lifecycle.ExitCode(err))
}

// service-b is not ready, over both transports, before it has the keys of the callers'
// issuer: a rollout with a wrong issuer stops at its first pod. Until then, /health and the
// log have the reason. Without the issuer later, it stays ready.
func TestReady_NeedsIssuersKeys(t *testing.T) {
	issuer := kittest.NewIssuer(t)
	issuer.Down.Store(true)
	env := environ(t)
	env["CALLER_ISSUER"], env["CALLER_ISSUER_CA_FILE"] = issuer.URL, issuer.CAFile
	env["CALLER_AUDIENCE"], env["CALLER_SUBJECTS"], env["HEALTH_DETAILS"] = "service-b", "friend", "on"
	b := kittest.Launch(t, run, env)
	kittest.Eventually(t, func() bool { return strings.Contains(b.Log.String(), "not ready yet") }, "the log has the reason")
	assert.Regexp(t, `"missing":"issuer's keys","reason":"load the keys of https://127.0.0.1:\d+: 503 `, b.Log.String())
	code, _, body := kittest.Get(t, b.URL+"/readyz")
	assert.Equal(t, http.StatusServiceUnavailable, code)
	assert.Equal(t, "starting: waiting for issuer's keys\n", body)
	_, _, body = kittest.Get(t, b.URL+"/health")
	assert.Contains(t, body, `"issuer's keys":[{"status":"warn"`)
	conn, err := grpc.NewClient(env["GRPC_ADDR"], grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(t, err)
	defer conn.Close() //nolint:errcheck // nothing depends on it
	serving := func() grpc_health_v1.HealthCheckResponse_ServingStatus {
		got, err := grpc_health_v1.NewHealthClient(conn).Check(t.Context(), &grpc_health_v1.HealthCheckRequest{})
		require.NoError(t, err)
		return got.GetStatus()
	}
	assert.Equal(t, grpc_health_v1.HealthCheckResponse_NOT_SERVING, serving())

	issuer.Down.Store(false)
	kittest.AwaitReady(t, b.URL)
	assert.Equal(t, grpc_health_v1.HealthCheckResponse_SERVING, serving())
	assert.EqualValues(t, 1, issuer.Fetches.Load(), "no caller has sent a token")

	issuer.Down.Store(true)
	ctx := metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+issuer.Token(t, map[string]any{"aud": "service-b", "sub": "friend"}))
	_, err = datav1.NewDataServiceClient(conn).GetData(ctx, &datav1.GetDataRequest{})
	require.NoError(t, err)
	code, _, body = kittest.Get(t, b.URL+"/health")
	assert.Equal(t, http.StatusOK, code)
	assert.Contains(t, body, `"output":"keys of `+issuer.URL+` loaded at 2`)
}

// The settings of callers are checked together: half of them must not let everybody in.
func TestStart_RejectsHalfOfCallers(t *testing.T) {
	for name, c := range map[string]struct {
		settings map[string]string
		want     string
	}{
		"no issuer":     {map[string]string{"CALLER_AUDIENCE": "b"}, `CALLER_ISSUER="": want an issuer`},
		"empty issuer":  {map[string]string{"CALLER_ISSUER": "", "CALLER_SUBJECTS": "s"}, `CALLER_ISSUER="": want an issuer`},
		"plaintext":     {map[string]string{"CALLER_ISSUER": "http://i"}, `CALLER_ISSUER="http://i": want https://HOST[:PORT][/PATH]`},
		"password":      {map[string]string{"CALLER_ISSUER": "https://u:secret@i:port"}, `CALLER_ISSUER="https://xxxxx@i:port": want a URL`},
		"no audience":   {map[string]string{"CALLER_ISSUER": "https://i"}, `CALLER_AUDIENCE="": want an audience`},
		"no subject":    {map[string]string{"CALLER_ISSUER": "https://i"}, `CALLER_SUBJECTS="": want one subject or more`},
		"empty subject": {map[string]string{"CALLER_ISSUER": "https://i", "CALLER_SUBJECTS": "s,"}, `CALLER_SUBJECTS="s,": want one subject or more`},
		"no CA":         {map[string]string{"CALLER_ISSUER": "https://i", "CALLER_ISSUER_CA_FILE": "none"}, `CALLER_ISSUER_CA_FILE="none": CA file: open none`},
	} {
		t.Run(name, func(t *testing.T) {
			err := run(t.Context(), nil, c.settings, &bytes.Buffer{})
			require.ErrorContains(t, err, c.want)
			assert.Equal(t, 2, lifecycle.ExitCode(err))
		})
	}
}
