// Package kittest helps to test services with real servers, processes and DNS
// instead of fakes. Only tests may import it.
//
//	kittest.go  telemetry, loopback addresses, free ports, a concurrent buffer
//	service.go  run a service inside the test, send it requests, wait for a condition
//	process.go  build a program, run it as a process, signal it
//	memory.go   the peak memory of a process
//	dns.go      a DNS server for net.DefaultResolver
//	tls.go      a certificate authority and a TLS server
//	issuer.go   an OpenID Connect issuer, whose tokens say who calls
//	grpc.go     a gRPC call whose deadline only the server knows
//	metrics.go  scrape and lint metrics
//	traces.go   a receiver of traces (package otlp)
//	hostile.go  clients that try to exhaust or crash a server
//	race_*.go   whether the race detector is on
package kittest

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"runtime"
	"strconv"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"example.com/tandem/kit/instance"
	"example.com/tandem/kit/telemetry"
)

// Telemetry returns telemetry for one test, with its own metrics. It logs to w.
func Telemetry(t testing.TB, w io.Writer) *telemetry.Telemetry {
	t.Helper()
	tel, err := telemetry.New(t.Context(), instance.Instance{Service: "test", Version: "test", Pod: "test"}, 0, nil, w)
	require.NoError(t, err)
	t.Cleanup(tel.Flush)
	return tel
}

// Loopbacks returns n addresses in 127.0.0.0/8, one for each server that plays a pod:
// the pods behind one name have the same port, and so need different addresses. It
// skips the test where the system is not Linux, which alone has these addresses by
// default.
func Loopbacks(t testing.TB, n int) []string {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skip("needs addresses such as 127.0.0.2, which only Linux has by default")
	}
	out := make([]string, n)
	for i := range out {
		// Random, so that tests that run at the same time use different addresses.
		out[i] = fmt.Sprintf("127.%d.%d.%d", 1+rand.IntN(254), rand.IntN(256), 1+rand.IntN(254))
	}
	return out
}

// FreePort returns a TCP port of 127.0.0.1 that is free at the time of the call.
func FreePort() string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err) // the machine has no loopback interface
	}
	defer l.Close() //nolint:errcheck // only the port number is needed
	return strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
}

// Buffer collects text. It is safe for concurrent use.
type Buffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *Buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *Buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}
