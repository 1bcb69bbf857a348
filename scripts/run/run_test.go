package main

import (
	"bytes"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"example.com/tandem/kit/kittest"
)

const soon = 30 * time.Second // enough on a busy machine

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// The program starts both services, shows a call over each transport, and stops them.
func TestRun_StartsAndStopsServices(t *testing.T) {
	bin := t.TempDir() // one for all, so that the services are linked once
	binary := bin + "/run"
	require.NoError(t, kittest.Build(".", binary))
	begin := func(t *testing.T, more ...string) *running { return begin(t, binary, bin, more...) }

	t.Run("shows a call over each transport, and stops on Ctrl-C in a terminal", func(t *testing.T) {
		r := begin(t)
		r.waitFor(t, "Stop with Ctrl-C")
		out := r.out.String()
		page := "http://localhost:" + r.ports[0]
		assert.Contains(t, out, "The page is at "+page+".")
		assert.Regexp(t, `curl '`+page+`/api/data\?via=http'\n +service-a-1 called http://localhost:\d+; service-b-1 at 127.0.0.1:\d+ responded ".+" in \d+.\d ms, 1 attempt\n`, out)
		assert.Regexp(t, `curl '`+page+`/api/data\?via=grpc'\n +service-a-1 called dns:///localhost:\d+; service-b-1 at 127.0.0.1:\d+ responded ".+" in \d+.\d ms, 1 attempt\n`, out)
		assert.Regexp(t, `(?m)^service-a  \d\d:\d\d:\d\d\.\d{3} ready$`, out)
		grpcLine := regexp.MustCompile(`(?m)^service-b  \d\d:\d\d:\d\d\.\d{3} grpc method=/data.v1.DataService/GetData code=OK .*trace=[0-9a-f]{8}$`)
		kittest.Eventually(t, func() bool { return grpcLine.MatchString(r.out.String()) }, "lines come in batches")
		assert.NotContains(t, out, "\x1b", "colors are for terminals only")
		assert.Contains(t, out, "Fault switches: http://localhost:"+r.ports[2]+"/faults and http://localhost:"+r.ports[5]+"/faults.")
		faults, err := http.Get("http://localhost:" + r.ports[5] + "/faults")
		require.NoError(t, err)
		require.NoError(t, faults.Body.Close())
		assert.Equal(t, http.StatusOK, faults.StatusCode)
		resp, err := http.Get(page)
		require.NoError(t, err)
		require.NoError(t, resp.Body.Close())
		assert.Equal(t, http.StatusOK, resp.StatusCode)
		http.DefaultClient.CloseIdleConnections()

		require.NoError(t, syscall.Kill(-r.cmd.Process.Pid, syscall.SIGINT)) // to the process group, as a terminal does
		assert.Equal(t, 0, r.wait(t))
		r.assertNothingLeft(t)
		assert.Equal(t, 2, strings.Count(r.out.String(), " drained"), "each service drains, once:\n%s", &r.out)
	})

	t.Run("a port is in use", func(t *testing.T) {
		ports := freePorts(t)
		l, err := net.Listen("tcp", "127.0.0.1:"+ports[3])
		require.NoError(t, err)
		defer l.Close() //nolint:errcheck // the test is over
		r := begin(t, "SERVICE_B_ADMIN_PORT="+ports[3])
		assert.Equal(t, 1, r.wait(t))
		assert.Equal(t, "port "+ports[3]+" (service-b's admin) is in use by another process; set SERVICE_B_ADMIN_PORT to another port\n",
			r.out.String(), "one line, and nothing started")
	})

	t.Run("a service does not start", func(t *testing.T) {
		r := begin(t, "LOG_LEVEL=loud")
		assert.Equal(t, 1, r.wait(t))
		assert.Contains(t, r.out.String(), `service-b  LOG_LEVEL="loud"`, "its log has the reason")
		assert.Regexp(t, `\nservice-b exited before it was ready \(exit status 2\); its log is above\n`, r.out.String())
		r.assertNothingLeft(t)
	})

	t.Run("a service is killed", func(t *testing.T) {
		r := begin(t)
		r.waitFor(t, "Stop with Ctrl-C")
		require.NoError(t, syscall.Kill(r.pids(t)["service-b"], syscall.SIGKILL))
		assert.Equal(t, 1, r.wait(t))
		assert.Contains(t, r.out.String(), "service-b exited (signal: killed)")
		assert.Regexp(t, `service-a .* drained\n`, r.out.String())
		r.assertNothingLeft(t)
	})

	t.Run("SIGTERM before the services are started", func(t *testing.T) {
		r := begin(t)
		r.waitFor(t, "building service-b")
		require.NoError(t, r.cmd.Process.Signal(syscall.SIGTERM))
		assert.Equal(t, 0, r.wait(t), "%s", &r.out)
		r.assertNothingLeft(t)
	})

	t.Run("a second Ctrl-C kills", func(t *testing.T) {
		r := begin(t, "DRAIN_DELAY=10m")
		r.waitFor(t, "Stop with Ctrl-C")
		require.NoError(t, r.cmd.Process.Signal(os.Interrupt))
		r.waitFor(t, "draining delay=10m0s")
		require.NoError(t, r.cmd.Process.Signal(os.Interrupt))
		assert.Equal(t, 1, r.wait(t))
		assert.Contains(t, r.out.String(), "service-b failed (signal: killed)")
		r.assertNothingLeft(t)
	})

	t.Run("the services are killed with run", func(t *testing.T) {
		if runtime.GOOS != "linux" {
			t.Skip("needs the parent-death signal, which only Linux has")
		}
		r := begin(t)
		r.waitFor(t, "Stop with Ctrl-C")
		require.NoError(t, r.cmd.Process.Kill())
		r.wait(t)
		require.Eventually(t, func() bool { return portsFree(r.asPorts(t)) == nil }, soon, 20*time.Millisecond)
	})

	t.Run("LOG_FORMAT=json prints lines unchanged", func(t *testing.T) {
		r := begin(t, "LOG_FORMAT=json")
		r.waitFor(t, "Stop with Ctrl-C")
		require.NoError(t, r.cmd.Process.Signal(os.Interrupt))
		assert.Equal(t, 0, r.wait(t))
		assert.Regexp(t, `(?m)^\{"time":.*"msg":"ready","service":"service-a","pod":"service-a-1"\}$`, r.out.String())
	})

	t.Run("invalid arguments", func(t *testing.T) {
		for arg, want := range map[string]string{
			"serve": "unknown argument \"serve\"; see --help\n",
			"--bni": "flag provided but not defined: -bni\n",
		} {
			text, err := exec.Command(binary, arg).CombinedOutput()
			var exit *exec.ExitError
			require.ErrorAs(t, err, &exit)
			assert.Equal(t, 2, exit.ExitCode())
			assert.Equal(t, want, string(text))
		}
		text, err := exec.Command(binary, "--help").CombinedOutput()
		require.NoError(t, err)
		assert.Equal(t, usage, string(text))
	})
}

// running is the program in its own process group, as a shell starts it.
type running struct {
	cmd   *exec.Cmd
	out   kittest.Buffer
	ports []string
	done  chan struct{}
}

// begin starts the program on free ports. bin is the folder for the services' binaries.
func begin(t *testing.T, binary, bin string, environ ...string) *running {
	t.Helper()
	r := &running{ports: freePorts(t), done: make(chan struct{})}
	r.cmd = exec.Command(binary, "--bin", bin)
	r.cmd.Dir = "../.."
	r.cmd.Env = os.Environ()
	for i, key := range []string{"SERVICE_A_HTTP_PORT", "SERVICE_A_ADMIN_PORT", "SERVICE_A_DEBUG_PORT", "SERVICE_B_HTTP_PORT", "SERVICE_B_ADMIN_PORT", "SERVICE_B_DEBUG_PORT", "SERVICE_B_GRPC_PORT"} {
		r.cmd.Env = append(r.cmd.Env, key+"="+r.ports[i])
	}
	r.cmd.Env = append(r.cmd.Env, environ...)
	r.cmd.Stdout, r.cmd.Stderr = &r.out, &r.out
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	// A service that has not exited keeps the pipe open: the test then fails instead of hanging.
	r.cmd.WaitDelay = time.Second
	require.NoError(t, r.cmd.Start())
	go func() {
		_ = r.cmd.Wait() // ProcessState has the outcome
		close(r.done)
	}()
	t.Cleanup(func() {
		_ = r.cmd.Process.Kill() // it may have exited
		<-r.done
	})
	return r
}

// wait returns the exit status of the program.
func (r *running) wait(t *testing.T) int {
	t.Helper()
	select {
	case <-r.done:
		return r.cmd.ProcessState.ExitCode()
	case <-time.After(soon):
		require.FailNow(t, "the process has not exited", "%s", &r.out)
		return 0
	}
}

func (r *running) waitFor(t *testing.T, text string) {
	t.Helper()
	require.Eventually(t, func() bool { return strings.Contains(r.out.String(), text) }, 4*soon, 5*time.Millisecond,
		"no %q in\n%s", text, &r.out)
}

// pids returns the process ids of the services, as the program printed them.
func (r *running) pids(t *testing.T) map[string]int {
	t.Helper()
	out := map[string]int{}
	for _, m := range regexp.MustCompile(`started (\S+), process (\d+)`).FindAllStringSubmatch(r.out.String(), -1) {
		pid, err := strconv.Atoi(m[2])
		require.NoError(t, err)
		out[m[1]] = pid
	}
	return out
}

func (r *running) assertNothingLeft(t *testing.T) {
	t.Helper()
	for name, pid := range r.pids(t) {
		assert.ErrorIs(t, syscall.Kill(pid, 0), syscall.ESRCH, "%s is still running", name)
	}
	assert.NoError(t, portsFree(r.asPorts(t)))
}

func (r *running) asPorts(t *testing.T) []port {
	t.Helper()
	var out []port
	for _, p := range r.ports {
		n, err := strconv.Atoi(p)
		require.NoError(t, err)
		out = append(out, port{n, "the test", "-"})
	}
	return out
}

// freePorts returns seven different ports that were free when it checked.
func freePorts(t *testing.T) []string {
	t.Helper()
	out := make([]string, 7)
	for i := range out {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		defer l.Close() //nolint:errcheck // all stay open until the last is found, so that they differ
		_, out[i], err = net.SplitHostPort(l.Addr().String())
		require.NoError(t, err)
	}
	return out
}

func TestReadSettings_ReportsInvalidValues(t *testing.T) {
	for name, tc := range map[string]struct {
		environ map[string]string
		want    string // the error
	}{
		"nothing set":  {},
		"another port": {environ: map[string]string{"SERVICE_A_HTTP_PORT": "18080"}},
		"not a number": {
			environ: map[string]string{"SERVICE_B_GRPC_PORT": "grpc"},
			want:    `SERVICE_B_GRPC_PORT="grpc": want a port from 1 to 65535`,
		},
		"zero": {
			environ: map[string]string{"SERVICE_B_HTTP_PORT": "0"},
			want:    `SERVICE_B_HTTP_PORT="0": want a port from 1 to 65535`,
		},
		"too high": {
			environ: map[string]string{"SERVICE_B_ADMIN_PORT": "65536"},
			want:    `SERVICE_B_ADMIN_PORT="65536": want a port from 1 to 65535`,
		},
		"the same port twice": {
			environ: map[string]string{"SERVICE_A_ADMIN_PORT": "9090"},
			want:    `SERVICE_B_GRPC_PORT=9090: SERVICE_A_ADMIN_PORT is the same port`,
		},
		"two errors": {
			environ: map[string]string{"SERVICE_A_HTTP_PORT": "-1", "LOG_FORMAT": "xml"},
			want:    "SERVICE_A_HTTP_PORT=\"-1\": want a port from 1 to 65535\nLOG_FORMAT=\"xml\": want text or json",
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := readSettings(func(key string) string { return tc.environ[key] })
			if tc.want != "" {
				require.EqualError(t, err, tc.want)
				return
			}
			require.NoError(t, err)
			want := 8080
			if p := tc.environ["SERVICE_A_HTTP_PORT"]; p != "" {
				want = 18080
			}
			assert.Equal(t, want, s.aHTTP.number)
			assert.Equal(t, 8081, s.aAdmin.number)
			assert.Equal(t, 8092, s.bDebug.number)
		})
	}
}

func TestPortsFree_NamesPortInUse(t *testing.T) {
	for _, addr := range []string{"127.0.0.1:0", "0.0.0.0:0", "[::1]:0"} {
		t.Run(addr, func(t *testing.T) {
			l, err := net.Listen("tcp", addr)
			if err != nil {
				t.Skip(err)
			}
			defer l.Close() //nolint:errcheck // the test is over
			if addrs, err := net.LookupHost("localhost"); addr[0] == '[' && !strings.Contains(fmt.Sprint(addrs, err), "::1") {
				t.Skip("localhost has no IPv6 address here")
			}
			n := l.Addr().(*net.TCPAddr).Port
			assert.EqualError(t, portsFree([]port{{n, "someone", "KEY"}}),
				fmt.Sprintf("port %d (someone) is in use by another process; set KEY to another port", n))
		})
	}
}

// Colors are for terminals, one for each service.
func TestOutput_ColorsOnTerminalsOnly(t *testing.T) {
	var b bytes.Buffer
	out := &output{w: &b, color: true}
	_, _ = out.log("service-a").Write([]byte(`{"time":"2026-01-02T03:04:05.678Z","level":"WARN","msg":"m"}` + "\nplain\n"))
	_, _ = out.log("service-b").Write([]byte(`{"time":"2026-01-02T03:04:05.678Z","level":"ERROR","msg":"m"}` + "\n"))
	assert.Equal(t, "\x1b[36mservice-a\x1b[0m  \x1b[2m03:04:05.678\x1b[0m \x1b[33mWARN\x1b[0m m\n"+
		"\x1b[36mservice-a\x1b[0m  plain\n"+
		"\x1b[35mservice-b\x1b[0m  \x1b[2m03:04:05.678\x1b[0m \x1b[31mERROR\x1b[0m m\n", b.String())
}
