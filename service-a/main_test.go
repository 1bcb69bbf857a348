package main

import (
	"bytes"
	"maps"
	"net/http"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"example.com/tandem/kit/kittest"
	"example.com/tandem/kit/lifecycle"
)

// An invalid request gets a problem with status 4xx.
func TestAPI_RejectsInvalidRequests(t *testing.T) {
	t.Parallel()
	a := startA(t, hostOf(t))
	for name, c := range map[string]struct {
		method, path, body string
		header             http.Header
		status             int
		detail             string
	}{
		"unknown via":           {path: "/api/data?via=other", status: 400, detail: "want http or grpc"},
		"way without a setting": {path: "/api/data?via=grpc-service", status: 400, detail: "want http or grpc"},
		"empty via":             {path: "/api/data?via=", status: 400, detail: "want http or grpc"},
		"empty key":             {path: "/api/data?key=", status: 400, detail: "1 to 64"},
		"long key":              {path: "/api/data?key=" + strings.Repeat("k", 65), status: 400, detail: "65 characters"},
		"control character":     {path: "/api/data?key=a%0d%0ab", status: 400, detail: "control character"},
		"invalid UTF-8":         {path: "/api/data?key=%ff", status: 400, detail: "UTF-8"},
		"n of 0":                {path: "/api/spread?n=0", status: 400, detail: "1 to 1000"},
		"large n":               {path: "/api/spread?n=1000000000", status: 400, detail: "1 to 1000"},
		"spread, invalid key":   {path: "/api/spread?key=%00", status: 400, detail: "control character"},
		"spread, unknown via":   {path: "/api/spread?via=other", status: 400, detail: "want http or grpc"},
		"stream, invalid key":   {path: "/api/stream?key=%00", status: 400, detail: "control character"},
		"stream, interval of 0": {path: "/api/stream?interval=0s", status: 400, detail: "100ms to 1m0s"},
		"unknown path":          {path: "/api/", status: 404, detail: "no route for this path"},
		"wrong method":          {method: "DELETE", path: "/api/data", status: 405, detail: "allowed methods: GET"},
		"unknown method":        {method: "BREW", path: "/api/data", status: 405, detail: "allowed methods: GET"},
		"body of a GET":         {path: "/api/data", body: "{}", status: 400, detail: "requests must not have a body"},
		"body of 2 MB":          {path: "/api/data", body: strings.Repeat("x", 2<<20), header: http.Header{"Expect": {"100-continue"}}, status: 413, detail: "exceeds"},
		"large header":          {path: "/api/data", header: http.Header{"X-Big": {strings.Repeat("x", 20<<10)}}, status: 431, detail: "exceed"},
		"long path":             {path: "/" + strings.Repeat("x", 20<<10), status: 431, detail: "exceed"},
	} {
		t.Run(name, func(t *testing.T) {
			req, err := http.NewRequestWithContext(t.Context(), c.method, a.URL+c.path, strings.NewReader(c.body))
			require.NoError(t, err)
			maps.Copy(req.Header, c.header)
			code, header, body := kittest.Do(t, req)
			assert.Equal(t, c.status, code, body)
			assert.Equal(t, "application/problem+json", header.Get("Content-Type"))
			assert.Equal(t, "nosniff", header.Get("X-Content-Type-Options"))
			assert.Contains(t, body, c.detail)
		})
	}
	assert.NotContains(t, a.Log.String(), `"msg":"panic"`)
}

// Metric names follow the conventions, and labels hold no value from a request.
func TestMetrics_AreNamedAndBounded(t *testing.T) {
	t.Parallel()
	addr := "127.0.0.1:" + kittest.FreePort()
	a := startA(t, hostOf(t), "ADMIN_ADDR="+addr)
	for _, via := range transports {
		getData(t, a, "key=a-secret-key&via="+via)
	}
	_, _, body := kittest.Get(t, "http://"+addr+"/metrics")
	problems, err := promlint.New(bytes.NewReader([]byte(body))).Lint()
	require.NoError(t, err)
	assert.Empty(t, problems)
	for _, metric := range []string{
		`client_calls_total{outcome="dns",peer="` + hostOf(t) + `",transport="http"} 1`,
		`client_calls_total{outcome="dns",peer="` + hostOf(t) + `",transport="grpc"} 1`,
		`http_client_request_duration_seconds_count{code="0",method="GET",peer="` + hostOf(t) + `"} 1`,
		`http_server_request_duration_seconds_count{code="503",method="GET",route="/api/data"} 2`,
		// 1, because a call to a name that does not exist is not retried.
		`grpc_client_handled_total{grpc_code="Unavailable",grpc_method="GetData",grpc_service="data.v1.DataService",grpc_type="unary"} 1`,
	} {
		assert.Contains(t, body, metric)
	}
	assert.NotContains(t, body, "secret")
}

// The log names a misspelled setting, and the setting with the nearest name.
func TestStart_WarnsOfMisspelledSettings(t *testing.T) {
	t.Parallel()
	a := startA(t, hostOf(t), "SERVICE_B_HTTP_URI=http://elsewhere")
	assert.Contains(t, a.Log.String(), `"name":"SERVICE_B_HTTP_URI","nearest":"SERVICE_B_HTTP_URL"`)
}

func TestStart_FailsOnInvalidConfiguration(t *testing.T) {
	t.Parallel()
	for variable, want := range map[string]string{
		"CALL_TIMEOUT=0s":                        `CALL_TIMEOUT="0s": want more than 0`,
		"CALL_TIMEOUT=soon":                      `CALL_TIMEOUT="soon": want a duration such as 250ms, 5s or 1m`,
		"SERVICE_B_HTTP_URL=service-b":           `SERVICE_B_HTTP_URL="service-b": want http://HOST[:PORT]`,
		"SERVICE_B_HTTP_URL=ftp://b":             `SERVICE_B_HTTP_URL="ftp://b": want http://HOST[:PORT]`,
		"SERVICE_B_HTTP_URL=http://b:99999":      `SERVICE_B_HTTP_URL="http://b:99999": want http://HOST[:PORT]`,
		"SERVICE_B_HTTP_URL=http://u:secret@b":   `SERVICE_B_HTTP_URL="http://xxxxx@b": want http://HOST[:PORT]`,
		"SERVICE_B_HTTP_URL=http://u:p@b:port":   `SERVICE_B_HTTP_URL="http://xxxxx@b:port": want a URL such as`,
		"SERVICE_B_GRPC_TARGET=nope:///%%":       `SERVICE_B_GRPC_TARGET="nope:///%%": `,
		"SERVICE_B_TOKEN_SCOPE=api://b/.default": `SERVICE_B_TOKEN_SCOPE="api://b/.default": want AZURE_CLIENT_ID, `,
		"AZURE_AUTHORITY_HOST=http://entra/":     `AZURE_AUTHORITY_HOST="http://entra/": want https://HOST/`,
		"SERVICE_B_GRPC_TARGET=dns:///service-b": `SERVICE_B_GRPC_TARGET="dns:///service-b": `,
		"SERVICE_B_GRPC_SERVICE_ADDR=b":          `SERVICE_B_GRPC_SERVICE_ADDR="b": want HOST:PORT`,
		"SERVICE_B_GRPC_SERVICE_ADDR=:9090":      `SERVICE_B_GRPC_SERVICE_ADDR=":9090": want HOST:PORT`,
		"SERVICE_B_GRPC_SERVICE_ADDR=b:0x1":      `SERVICE_B_GRPC_SERVICE_ADDR="b:0x1": want HOST:PORT`,
		"SERVICE_B_PODS_URL=https://b":           `SERVICE_B_PODS_URL="https://b": want http://HOST[:PORT]`,
		"SERVICE_B_PODS_URL=http://b/faults":     `SERVICE_B_PODS_URL="http://b/faults": want http://HOST[:PORT]`,
		"TRACE_URL=https://traces/":              `TRACE_URL="https://traces/": want http://HOST/… or https://HOST/… with {traceId} in it`,
		"TRACE_URL=javascript:x{traceId}":        `TRACE_URL="javascript:x{traceId}": want http://HOST/`,
	} {
		k, v, _ := strings.Cut(variable, "=")
		err := run(t.Context(), nil, map[string]string{"HTTP_ADDR": "127.0.0.1:0", "ADMIN_ADDR": "127.0.0.1:0", k: v}, &bytes.Buffer{})
		require.ErrorContains(t, err, want)
		assert.Equal(t, 2, lifecycle.ExitCode(err), variable)
	}
}

// A token comes from a file or from Entra.
func TestStart_RejectsTwoTokens(t *testing.T) {
	t.Parallel()
	err := run(t.Context(), nil, map[string]string{"SERVICE_B_TOKEN_FILE": "f", "SERVICE_B_TOKEN_SCOPE": "s",
		"AZURE_CLIENT_ID": "c", "AZURE_TENANT_ID": "t", "AZURE_FEDERATED_TOKEN_FILE": "f"}, &bytes.Buffer{})
	require.EqualError(t, err, `SERVICE_B_TOKEN_SCOPE="s": want either this or SERVICE_B_TOKEN_FILE`)
	assert.Equal(t, 2, lifecycle.ExitCode(err))
}
