package kittest

import (
	"io"
	"net"
	"net/http/httptest"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/grpc"

	"example.com/tandem/kit/config"
	"example.com/tandem/kit/instance"
	"example.com/tandem/kit/kittest/otlp"
	"example.com/tandem/kit/telemetry"
)

// Traced returns telemetry that exports every span, after Flush, to the receiver. It sets
// environment variables, so the test must not be parallel.
func Traced(t *testing.T) (*telemetry.Telemetry, *otlp.Receiver) {
	t.Helper()
	r, url := StartReceiver(t, "grpc")
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
	t.Setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
	tel, err := telemetry.New(t.Context(), instance.Instance{Service: "test", Version: "test", Pod: "test"}, 0, config.Environ(os.Environ()), io.Discard)
	require.NoError(t, err)
	t.Cleanup(tel.Flush)
	return tel, r
}

// StartReceiver starts a receiver of traces for a value of OTEL_EXPORTER_OTLP_PROTOCOL,
// and returns it with its URL.
func StartReceiver(t testing.TB, protocol string) (*otlp.Receiver, string) {
	t.Helper()
	r := &otlp.Receiver{}
	if protocol != "grpc" {
		server := httptest.NewServer(r)
		t.Cleanup(server.Close)
		return r, server.URL
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	server := grpc.NewServer()
	collector.RegisterTraceServiceServer(server, r)
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	t.Cleanup(func() {
		server.Stop()
		require.NoError(t, <-served)
	})
	return r, "http://" + l.Addr().String()
}
