// Package page tests the page of service-a in the system's Chromium: with real processes of
// both services, or with the page's real files and snapshots of many pods.
package page

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/stretchr/testify/require"
	"golang.org/x/net/dns/dnsmessage"

	"example.com/tandem/deploy/e2e/page/browser"
)

const (
	static = "../../../service-a/internal/page/static"
	// timeout of one wait: long, because the machine may be busy.
	timeout = 30 * time.Second
)

var (
	chromium context.Context // of the browser that all tests use; nil if there is none
	binaries string          // folder of the services' binaries
)

func TestMain(m *testing.M) {
	os.Exit(runTests(m))
}

func runTests(m *testing.M) int {
	path, err := browser.Find()
	if err != nil {
		return m.Run() // each test is skipped
	}
	if binaries, err = os.MkdirTemp("", "tandem-page"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(binaries) //nolint:errcheck // what remains is in the system's temporary folder
	var cancel context.CancelFunc
	chromium, cancel, err = browser.Start(context.Background(), path) //nolint:fatcontext // the parent of all tabs
	if err = errors.Join(err, buildServices()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer cancel()
	return m.Run()
}

// buildServices builds both services, service-a with a resolver for the test's DNS server.
func buildServices() error {
	file, err := filepath.Abs("testdata/overlay/resolver.go")
	if err != nil {
		return err
	}
	dir, err := filepath.Abs("../../../service-a")
	if err != nil {
		return err
	}
	overlay, err := json.Marshal(map[string]any{"Replace": map[string]string{filepath.Join(dir, "resolver_overlay.go"): file}})
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(binaries, "overlay.json"), overlay, 0o600); err != nil {
		return err
	}
	for _, name := range []string{"service-a", "service-b"} {
		cmd := exec.Command("go", "build", "-overlay", filepath.Join(binaries, "overlay.json"), "-o", filepath.Join(binaries, name), ".")
		cmd.Dir = filepath.Join("../../..", name)
		if text, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("build %s: %w\n%s", name, err, text)
		}
	}
	return nil
}

// newTab opens a tab, and fails the test if the page reports an error on the console.
func newTab(t *testing.T) context.Context {
	t.Helper()
	tab, complaints := newTabWithConsole(t)
	t.Cleanup(func() {
		for _, complaint := range complaints() {
			t.Errorf("console: %s", complaint)
		}
	})
	return tab
}

// newTabWithConsole opens a tab. complaints returns the errors and warnings on its console.
func newTabWithConsole(t *testing.T) (tab context.Context, complaints func() []string) {
	t.Helper()
	if chromium == nil {
		t.Skip("skipped: " + browser.ErrNone.Error())
	}
	tab, cancel := chromedp.NewContext(chromium)
	t.Cleanup(cancel)
	require.NoError(t, chromedp.Do(tab))
	var mu sync.Mutex
	var all []string
	messages := chromedp.Console(tab)
	go func() {
		for message, err := range messages {
			if err != nil {
				return // the tab is closed
			}
			if message.IsException() || message.Type == "error" || message.Type == "warning" {
				mu.Lock()
				all = append(all, message.String())
				mu.Unlock()
			}
		}
	}()
	require.NoError(t, browser.Show(tab, browser.Desktop, "light"))
	return tab, func() []string {
		mu.Lock()
		defer mu.Unlock()
		return all
	}
}

// open opens the page, and waits for its first snapshot, whose sentences move the controls.
func open(t *testing.T, tab context.Context, url string) {
	t.Helper()
	require.NoError(t, browser.Open(tab, url))
	await(t, tab, `document.getElementById('link').dataset.state === 'live' && document.getElementById('lesson').textContent !== 'The page waits for service-a.'`)
}

func await(t *testing.T, tab context.Context, expression string) {
	t.Helper()
	if err := browser.Await(tab, expression, timeout); err != nil {
		text, _ := browser.Eval[string](tab, `document.body.innerText`) // what the page shows instead
		require.NoError(t, err, "the page shows:\n%.3000s", text)
	}
}

func eval[T any](t *testing.T, tab context.Context, expression string) T {
	t.Helper()
	value, err := browser.Eval[T](tab, expression)
	require.NoError(t, err)
	return value
}

func click(t *testing.T, tab context.Context, selector string) {
	t.Helper()
	require.NoError(t, browser.Click(tab, selector))
}

// choose selects a radio button.
func choose(t *testing.T, tab context.Context, name, value string) {
	t.Helper()
	click(t, tab, fmt.Sprintf(`input[name=%q][value=%q]`, name, value))
}

// What follows partly stands in kit/kittest, too. To require kit, this module would need gRPC, OpenTelemetry
// and thirty more modules, and a newer client_golang than the module of Prometheus that it uses.

// pair is service-a and three pods of service-b, on loopback. As in a cluster, a headless
// name has the address of each pod, and one address for HTTP and one for gRPC stand for a
// ClusterIP.
type pair struct {
	url  string
	a    *process
	bs   []*process
	envA []string
}

func startPair(t *testing.T) *pair {
	t.Helper()
	if chromium == nil {
		t.Skip("skipped: " + browser.ErrNone.Error())
	}
	addrs := []string{"127.0.0.2", "127.0.0.3", "127.0.0.4"}
	for _, addr := range addrs {
		l, err := net.Listen("tcp", addr+":0")
		if err != nil {
			t.Skipf("skipped: this system has no address %s: %v", addr, err)
		}
		require.NoError(t, l.Close())
	}
	httpPort, grpcPort, adminPort, debugPort := freePort(t), freePort(t), freePort(t), freePort(t)
	p := &pair{}
	for i, addr := range addrs {
		p.bs = append(p.bs, start(t, "service-b",
			fmt.Sprintf("POD_NAME=service-b-%d", i+1), "POD_IP="+addr, fmt.Sprintf("NODE_NAME=node-%d", i+1), fmt.Sprintf("NODE_ZONE=zone-%d", i/2+1),
			"FAULTS=on", "DRAIN_DELAY=0s", "HTTP_ADDR="+addr+":"+httpPort, "GRPC_ADDR="+addr+":"+grpcPort,
			"ADMIN_ADDR="+addr+":"+adminPort, "DEBUG_ADDR="+addr+":"+debugPort))
	}
	for i, addr := range addrs {
		p.bs[i].debug = "http://" + addr + ":" + debugPort
		awaitReady(t, "http://"+addr+":"+httpPort)
	}
	addr := "127.0.0.1:" + freePort(t)
	p.url = "http://" + addr + "/"
	p.envA = []string{
		"TEST_DNS=" + serveDNS(t, "service-b.test.", addrs), "POD_NAME=service-a-1", "FAULTS=on", "DRAIN_DELAY=0s",
		"HTTP_ADDR=" + addr, "ADMIN_ADDR=127.0.0.1:" + freePort(t), "DEBUG_ADDR=127.0.0.1:" + freePort(t),
		"SERVICE_B_HTTP_URL=http://" + clusterIP(t, addrs, httpPort), "SERVICE_B_GRPC_TARGET=dns:///service-b.test:" + grpcPort,
		"SERVICE_B_GRPC_SERVICE_ADDR=" + clusterIP(t, addrs, grpcPort), "SERVICE_B_PODS_URL=http://service-b.test:" + httpPort, "TRACE_URL=https://traces.test/trace/{traceId}",
	}
	p.startA(t)
	return p
}

func (p *pair) startA(t *testing.T) {
	t.Helper()
	p.a = start(t, "service-a", p.envA...)
	awaitReady(t, strings.TrimSuffix(p.url, "/"))
}

type process struct {
	cmd   *exec.Cmd
	debug string // URL of the fault switch
}

func start(t *testing.T, name string, environ ...string) *process {
	t.Helper()
	var log bytes.Buffer
	cmd := exec.Command(filepath.Join(binaries, name))
	cmd.Env, cmd.Stdout, cmd.Stderr = append([]string{"LOG_LEVEL=warn"}, environ...), &log, &log
	require.NoError(t, cmd.Start())
	p := &process{cmd: cmd}
	t.Cleanup(func() {
		p.kill()
		if t.Failed() {
			t.Logf("%s:\n%.2000s", name, log.String())
		}
	})
	return p
}

// kill ends the process, and returns when it has ended.
func (p *process) kill() {
	_ = p.cmd.Process.Kill() // it may have ended
	_ = p.cmd.Wait()
}

// setFault sets a fault, as JSON, at the pod itself.
func (p *process) setFault(t *testing.T, fault string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, p.debug+"/faults", strings.NewReader(fault))
	require.NoError(t, err)
	resp, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	require.Equal(t, http.StatusOK, resp.StatusCode)
}

func awaitReady(t *testing.T, url string) {
	t.Helper()
	require.Eventually(t, func() bool {
		resp, err := http.Get(url + "/readyz")
		if err != nil {
			return false
		}
		return resp.Body.Close() == nil && resp.StatusCode == http.StatusOK
	}, timeout, 20*time.Millisecond, url)
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close() //nolint:errcheck // it is only asked for its port
	return strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
}

// clusterIP forwards each connection to a random address, as kube-proxy does.
func clusterIP(t *testing.T, addrs []string, port string) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer client.Close() //nolint:errcheck // both ends see it
				server, err := net.Dial("tcp", addrs[rand.IntN(len(addrs))]+":"+port)
				if err != nil {
					return
				}
				defer server.Close() //nolint:errcheck // both ends see it
				go func() {
					_, _ = io.Copy(server, client)
					_ = server.Close()
				}()
				_, _ = io.Copy(client, server)
			}()
		}
	}()
	return l.Addr().String()
}

// serveDNS starts a DNS server that knows one name, and returns its address.
func serveDNS(t *testing.T, name string, addrs []string) string {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	go func() {
		buf := make([]byte, 1500)
		for {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			var m dnsmessage.Message
			if m.Unpack(buf[:n]) != nil || len(m.Questions) != 1 {
				continue
			}
			q := m.Questions[0]
			m.Response, m.Authoritative, m.Additionals = true, true, nil
			switch {
			case q.Name.String() != name:
				m.RCode = dnsmessage.RCodeNameError
			case q.Type == dnsmessage.TypeA:
				for _, addr := range addrs {
					m.Answers = append(m.Answers, dnsmessage.Resource{
						Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class, TTL: 5},
						Body:   &dnsmessage.AResource{A: [4]byte(net.ParseIP(addr).To4())},
					})
				}
			}
			if response, err := m.Pack(); err == nil {
				_, _ = conn.WriteTo(response, from) // a lost response is asked for again
			}
		}
	}()
	return conn.LocalAddr().String()
}
