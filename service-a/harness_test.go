package main

import (
	"encoding/json"
	"fmt"
	"hash/crc32"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"example.com/tandem/kit/kittest"
)

// The tests of this package run service-a in the test's process, and each
// instance of service-b as a process of its own. An instance has an address of
// 127.0.0.0/8, and a DNS server on loopback resolves the name of service-b to the
// addresses, as a headless Service does in a cluster.

var (
	dns            *kittest.DNS
	serviceBBinary string
	// All instances of service-b have the same ports; only their addresses differ.
	httpPort, grpcPort, adminPort, debugPort = kittest.FreePort(), kittest.FreePort(), kittest.FreePort(), kittest.FreePort()
)

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "tandem")
	if err == nil {
		serviceBBinary = filepath.Join(dir, "service-b")
		err = kittest.Build("../service-b", serviceBBinary)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	dns = kittest.UseDNS()
	code := m.Run()
	dns.Close()
	_ = os.RemoveAll(dir) // what remains is in the system's temporary folder
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

var transports = []string{"http", "grpc"}

// pod is an instance of service-b.
type pod struct {
	*kittest.Process
	name, addr string
	environ    []string
}

// startB starts an instance of service-b at addr, and waits until it is ready.
func startB(t *testing.T, name, addr string, environ ...string) *pod {
	t.Helper()
	b := &pod{name: name, addr: addr, environ: append([]string{
		"POD_NAME=" + name, "DRAIN_DELAY=500ms", "FAULTS=on",
		"HTTP_ADDR=" + addr + ":" + httpPort, "GRPC_ADDR=" + addr + ":" + grpcPort,
		"ADMIN_ADDR=" + addr + ":" + adminPort, "DEBUG_ADDR=" + addr + ":" + debugPort,
	}, environ...)}
	b.start(t)
	return b
}

func (b *pod) start(t *testing.T) {
	t.Helper()
	b.Process = kittest.Start(t, serviceBBinary, b.environ...)
	kittest.AwaitReady(t, "http://"+b.addr+":"+httpPort)
}

// stop sends SIGTERM as Kubernetes does, and requires that no call is cut off.
func (b *pod) stop(t *testing.T) {
	t.Helper()
	b.Signal(t, syscall.SIGTERM)
	require.Equal(t, 0, b.Wait(t, 30*time.Second))
}

// setFault sets a fault, as JSON.
func (b *pod) setFault(t *testing.T, fault string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, "http://"+b.addr+":"+debugPort+"/faults", strings.NewReader(fault))
	require.NoError(t, err)
	code, _, body := kittest.Do(t, req)
	require.Equal(t, http.StatusOK, code, body)
}

// startA starts a service-a that calls service-b by name.
func startA(t *testing.T, name string, environ ...string) *kittest.Service {
	t.Helper()
	return kittest.Serve(t, run, environA(name, environ...))
}

// environA returns the environment of a service-a that calls service-b by name.
func environA(name string, environ ...string) map[string]string {
	env := map[string]string{
		"POD_NAME": "a-1", "DRAIN_DELAY": "0s", "CALL_TIMEOUT": "2s",
		"HTTP_ADDR": "127.0.0.1:" + kittest.FreePort(), "ADMIN_ADDR": "127.0.0.1:" + kittest.FreePort(),
		"SERVICE_B_HTTP_URL": "http://" + name + ":" + httpPort, "SERVICE_B_GRPC_TARGET": "dns:///" + name + ":" + grpcPort,
	}
	for _, pair := range environ {
		k, v, _ := strings.Cut(pair, "=")
		env[k] = v
	}
	return env
}

// startPair starts n instances of service-b, and a service-a that calls them by
// the name that startPair returns.
func startPair(t *testing.T, n int, environ ...string) (*kittest.Service, []*pod, string) {
	t.Helper()
	name := hostOf(t)
	addrs := kittest.Loopbacks(t, n)
	bs := make([]*pod, n)
	for i, addr := range addrs {
		bs[i] = startB(t, fmt.Sprintf("b-%d", i+1), addr, environ...)
	}
	dns.Set(name, addrs...)
	return startA(t, name), bs, name
}

// hostOf returns the host name of service-b in this test. It is a checksum,
// because a label of a host name has at most 63 characters.
func hostOf(t *testing.T) string {
	return fmt.Sprintf("service-b.%x.test", crc32.ChecksumIEEE([]byte(t.Name())))
}

// dataBody is the body of /api/data: a response, or a problem.
type dataBody struct {
	ServedBy struct{ Pod string }
	Call     struct {
		Transport, Target, BalancedBy, Peer, TraceID string
		Addresses                                    []string
		Attempts                                     int
		DurationMS                                   float64
		Tries                                        []struct {
			Peer, Class, Reason string
			DurationMS          float64
		}
	}
	Data struct {
		Key, Message string
		ServedBy     struct{ Pod string }
	}
	Status        int
	Class, Detail string
}

func getData(t testing.TB, a *kittest.Service, query string) (int, http.Header, dataBody) {
	t.Helper()
	code, header, body := kittest.Get(t, a.URL+"/api/data?"+query)
	var got dataBody
	require.NoError(t, json.Unmarshal([]byte(body), &got), body)
	return code, header, got
}

// spreadBody is the body of /api/spread.
type spreadBody struct {
	N, Attempts int
	Pods        map[string]int
	Errors      map[string]int
	LatencyMS   struct{ P50, P90, P99, Max float64 }
}

func getSpread(t testing.TB, a *kittest.Service, via string, n int) spreadBody {
	t.Helper()
	code, _, body := kittest.Get(t, fmt.Sprintf("%s/api/spread?via=%s&n=%d", a.URL, via, n))
	require.Equal(t, http.StatusOK, code, body)
	var got spreadBody
	require.NoError(t, json.Unmarshal([]byte(body), &got), body)
	return got
}
