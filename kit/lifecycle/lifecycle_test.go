package lifecycle_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"example.com/tandem/kit/config"
	"example.com/tandem/kit/health"
	"example.com/tandem/kit/httpserver"
	"example.com/tandem/kit/instance"
	"example.com/tandem/kit/kittest"
	"example.com/tandem/kit/lifecycle"
	"example.com/tandem/kit/telemetry"
)

// timeout is far longer than any step of these tests takes.
const timeout = 30 * time.Second

func TestMain(m *testing.M) {
	if name := os.Getenv("TEST_RUN"); name != "" {
		lifecycle.Main(programs[name])
	}
	goleak.VerifyTestMain(m)
}

// programs are run functions. The test binary runs the one that TEST_RUN names
// instead of the tests.
var programs = map[string]lifecycle.RunFunc{
	"run until the signal": func(ctx context.Context, args []string, environ map[string]string, out io.Writer) error {
		_, _ = fmt.Fprintln(out, "started", len(args), environ["GREETING"])
		<-ctx.Done()
		_, _ = fmt.Fprintln(out, "stopped")
		return nil
	},
	"fail": func(context.Context, []string, map[string]string, io.Writer) error {
		return errors.New("disk full")
	},
	"report invalid configuration": func(context.Context, []string, map[string]string, io.Writer) error {
		return fmt.Errorf("read the configuration: %w", errors.Join(config.Invalid("A", "x", "want y"), config.Invalid("B", "x", "want y")))
	},
	"warn and be killed": func(ctx context.Context, _ []string, environ map[string]string, out io.Writer) error {
		tel, err := telemetry.New(ctx, instance.Instance{}, slog.LevelInfo, environ, out)
		if err != nil {
			return err
		}
		tel.Log.Info("the line before")
		tel.Log.Warn("the reason")
		return syscall.Kill(os.Getpid(), syscall.SIGKILL)
	},
	"panic": func(_ context.Context, _ []string, _ map[string]string, out io.Writer) error {
		_, _ = fmt.Fprintln(out, "the last line")
		panic("on purpose")
	},
	"be killed while draining": func(ctx context.Context, _ []string, _ map[string]string, out io.Writer) error {
		_, _ = fmt.Fprintln(out, "started")
		<-ctx.Done()
		time.Sleep(time.Second) // Main reacts to the end of ctx in far less
		_, _ = fmt.Fprintln(out, "the last line")
		return syscall.Kill(os.Getpid(), syscall.SIGKILL)
	},
	"log its settings": func(ctx context.Context, _ []string, environ map[string]string, out io.Writer) error {
		tel, err := telemetry.New(ctx, instance.Instance{}, slog.LevelInfo, environ, out)
		if err != nil {
			return err
		}
		ended, end := context.WithCancel(ctx)
		end()
		return lifecycle.Run(ended, lifecycle.Options{
			Log: tel.Log, Health: health.New(instance.Instance{}), Unknown: []config.Unknown{{Name: "MESAGE", Nearest: "MESSAGE"}},
		})
	},
	"ignore the first signal": func(ctx context.Context, _ []string, _ map[string]string, out io.Writer) error {
		_, _ = fmt.Fprintln(out, "started")
		<-ctx.Done()
		// Main restores the default effect a moment after the first signal, so that more
		// than one may be needed.
		for range 1000 {
			_ = syscall.Kill(os.Getpid(), syscall.SIGTERM)
			time.Sleep(10 * time.Millisecond)
		}
		return nil
	},
}

// start starts the test binary as one of programs.
func start(t *testing.T, program string, environ ...string) *kittest.Process {
	t.Helper()
	return kittest.Start(t, os.Args[0], append(environ, "TEST_RUN="+program, "GREETING=hello")...)
}

func awaitLog(t *testing.T, p *kittest.Process, line string) {
	t.Helper()
	kittest.Eventually(t, func() bool { return strings.Contains(p.Log.String(), line) }, line)
}

// SIGTERM and SIGINT end ctx, and the process exits with 0 when run has returned.
func TestMain_SignalEndsContext(t *testing.T) {
	for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		t.Run(signal.String(), func(t *testing.T) {
			p := start(t, "run until the signal")
			awaitLog(t, p, "started 0 hello\n")
			p.Signal(t, signal)
			assert.Zero(t, p.Wait(t, timeout))
			assert.True(t, strings.HasSuffix(p.Log.String(), "stopped\n"), p.Log)
		})
	}
}

// The status is 2 for a configuration error and 1 for any other. The error is
// printed.
func TestMain_ExitStatus(t *testing.T) {
	p := start(t, "fail")
	assert.Equal(t, 1, p.Wait(t, timeout))
	assert.Equal(t, "disk full\n", p.Log.String())

	p = start(t, "report invalid configuration")
	assert.Equal(t, 2, p.Wait(t, timeout))
	assert.Equal(t, "read the configuration: A=\"x\": want y\nB=\"x\": want y\n", p.Log.String())
}

func TestMain_SecondSignalKills(t *testing.T) {
	p := start(t, "ignore the first signal")
	awaitLog(t, p, "started")
	p.Signal(t, syscall.SIGTERM)
	assert.Equal(t, -1, p.Wait(t, timeout), "the process exited by itself")
}

// A warning, and the lines before it, are written before the process can die of
// what the warning is about.
func TestMain_WritesWarningsAtOnce(t *testing.T) {
	p := start(t, "warn and be killed")
	assert.Equal(t, -1, p.Wait(t, timeout))
	assert.Regexp(t, `(?s)"msg":"the line before".*"msg":"the reason"`, p.Log.String())
}

func TestMain_FlushesOnPanic(t *testing.T) {
	p := start(t, "panic")
	assert.Equal(t, 2, p.Wait(t, timeout))
	assert.Contains(t, p.Log.String(), "the last line\n")
	assert.Contains(t, p.Log.String(), "panic: on purpose")
}

// After the signal no line is buffered, because the process may be killed at any time.
func TestMain_WritesAtOnceWhileDraining(t *testing.T) {
	p := start(t, "be killed while draining")
	awaitLog(t, p, "started\n")
	p.Signal(t, syscall.SIGTERM)
	assert.Equal(t, -1, p.Wait(t, timeout))
	assert.Contains(t, p.Log.String(), "the last line\n")
}

// The first line shows the settings of Go's runtime: GOGC and GOMEMLIMIT, or else
// those of tuneGC, with a soft limit of 90 % of MEMORY_LIMIT.
func TestMain_LogsEffectiveSettings(t *testing.T) {
	const limit = "MEMORY_LIMIT=134217728" // 128 MiB
	for _, c := range []struct {
		environ []string
		want    string
	}{
		{environ: nil, want: `"msg":"starting",.*"gogc":GC,"gomemlimit":"off"`},
		{environ: []string{limit}, want: `"gogc":GC,"gomemlimit":"115MiB"`},
		{environ: []string{limit, "GOMEMLIMIT=64MiB", "GOGC=50"}, want: `"gogc":50,"gomemlimit":"64MiB"`},
		{environ: []string{"GOMAXPROCS=1"}, want: `"gomaxprocs":1,`},
	} {
		p := start(t, "log its settings", c.environ...)
		require.Equal(t, 0, p.Wait(t, timeout))
		first, rest, _ := strings.Cut(p.Log.String(), "\n")
		assert.Regexp(t, strings.ReplaceAll(c.want, "GC", strconv.Itoa(lifecycle.GCPercent)), first, c.environ)
		assert.Regexp(t, `"level":"WARN",.*"name":"MESAGE","nearest":"MESSAGE"`, rest)
	}
}

// Run fails if kubelet would kill the process before it has stopped. The sum
// contains every step of the timeline: 3 s for the preStop hook, 5 s of delay, 10 s
// for requests in flight, 1 s to cut them off, 1 s for the admin port and 5 s to
// send spans.
func TestRun_ChecksGracePeriod(t *testing.T) {
	s := newService(t)
	s.options.Drain = config.Drain{PreStopDelay: 3 * time.Second, DrainDelay: 5 * time.Second, DrainTimeout: 10 * time.Second}
	s.signal() // if Run starts the service, it stops at once

	s.options.Drain.TerminationGracePeriod = 25*time.Second - 1
	err := lifecycle.Run(s.ctx, s.options, s.One)
	require.EqualError(t, err, `TERMINATION_GRACE_PERIOD="24.999999999s": want at least 25s (PRE_STOP_DELAY 3s + DRAIN_DELAY 5s + DRAIN_TIMEOUT 10s `+
		`+ 7s to cut off requests, close ports and send spans); raise it together with the pod's terminationGracePeriodSeconds, or lower DRAIN_TIMEOUT`)
	assert.Equal(t, 2, lifecycle.ExitCode(err))
	assert.Equal(t, "starting", s.ready())

	s.options.Drain.DrainDelay, s.options.Drain.PreStopDelay = 0, 8*time.Second // the same sum, without DRAIN_DELAY to wait for
	s.options.Drain.TerminationGracePeriod = 25 * time.Second
	require.NoError(t, lifecycle.Run(s.ctx, s.options, s.One))
}

func TestExitCode_IsZeroWithoutError(t *testing.T) {
	assert.Zero(t, lifecycle.ExitCode(nil))
}

// recordedServer is an httpserver.Server that records when its methods are called.
type recordedServer struct {
	*httpserver.Server
	name   string
	record func(event string)
	begun  chan struct{} // closed when Shutdown begins
}

func (r *recordedServer) StartDraining() {
	r.record(r.name + " starts draining")
	r.Server.StartDraining()
}

func (r *recordedServer) Shutdown(ctx context.Context) error {
	r.record(r.name + " shutting down")
	close(r.begun)
	err := r.Server.Shutdown(ctx)
	r.record(r.name + " shut down")
	return err
}

// service is a service with two API servers and an admin server. Its events are
// the calls of their methods, each followed by the response of /readyz at that time.
type service struct {
	Health          *health.Health
	Admin, One, Two *recordedServer
	options         lifecycle.Options
	mu              sync.Mutex
	events          []string
	ctx             context.Context
	signal          context.CancelFunc
	ended           chan error
	transport       *http.Transport
}

func newService(t *testing.T) *service {
	t.Helper()
	s := &service{Health: health.New(instance.Instance{}), ended: make(chan error, 1), transport: &http.Transport{}}
	s.ctx, s.signal = context.WithCancel(t.Context())
	record := func(event string) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.events = append(s.events, event+", "+s.ready())
	}
	api := func(name string) *recordedServer {
		server := httpserver.New(httpserver.Options{
			AddrVar: name, Addr: "127.0.0.1:0", Telemetry: kittest.Telemetry(t, io.Discard), Health: s.Health,
		})
		return &recordedServer{server, name, record, make(chan struct{})}
	}
	s.One, s.Two = api("one"), api("two")
	admin := httpserver.NewAdmin("admin", "127.0.0.1:0", kittest.Telemetry(t, io.Discard))
	s.Admin = &recordedServer{admin, "admin", record, make(chan struct{})}
	s.options = lifecycle.Options{
		Log: slog.New(slog.DiscardHandler), Health: s.Health, Admin: []lifecycle.Server{s.Admin}, Drain: config.Drain{DrainTimeout: timeout},
	}
	t.Cleanup(s.transport.CloseIdleConnections)
	return s
}

// run runs the service until it is ready.
func (s *service) run(t *testing.T, servers ...lifecycle.Server) {
	t.Helper()
	if servers == nil {
		servers = []lifecycle.Server{s.One, s.Two}
	}
	go func() { s.ended <- lifecycle.Run(s.ctx, s.options, servers...) }()
	kittest.Eventually(t, func() bool { return s.ready() == "ready" }, "ready")
}

// ready returns the response of /readyz.
func (s *service) ready() string {
	w := httptest.NewRecorder()
	s.Health.ServeReadyz(w, nil)
	return strings.TrimSpace(w.Body.String())
}

// get sends a request to one of the servers, on an idle connection or a new one.
func (s *service) get(server *recordedServer, path string) (status int, err error) {
	req, err := http.NewRequest(http.MethodGet, "http://"+server.Addr().String()+path, nil)
	if err != nil {
		return 0, err
	}
	resp, err := s.transport.RoundTrip(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close() //nolint:errcheck // read whole below
	_, err = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode, err
}

// Run drains in the order of the package comment: health first, then all API
// servers at the same time, the admin server last. Requests in flight and requests
// sent during the delay succeed.
func TestRun_DrainsInOrderWithoutLoss(t *testing.T) {
	s := newService(t)
	s.options.Drain.DrainDelay = 2 * time.Second
	inFlight := make(chan struct{}, 2)
	// Each handler waits until the other server shuts down: if the servers shut down
	// one after the other, neither handler would return.
	wait := func(other *recordedServer) http.HandlerFunc {
		return func(http.ResponseWriter, *http.Request) {
			inFlight <- struct{}{}
			<-other.begun
			status, err := s.get(s.Admin, "/metrics")
			assert.NoError(t, err, "the admin server must serve until the end of the drain")
			assert.Equal(t, 200, status)
		}
	}
	s.One.API.Get("/wait", wait(s.Two))
	s.Two.API.Get("/wait", wait(s.One))
	s.One.API.Get("/hello", func(http.ResponseWriter, *http.Request) {})
	s.run(t)

	responses := make(chan error, 2)
	for _, server := range []*recordedServer{s.One, s.Two} {
		go func() {
			status, err := s.get(server, "/wait")
			if err == nil && status != 200 {
				err = fmt.Errorf("status %d", status)
			}
			responses <- err
		}()
	}
	<-inFlight
	<-inFlight

	signalled := time.Now()
	s.signal()
	kittest.Eventually(t, func() bool { return s.ready() == "draining" }, "draining")
	served := 0
	for over := false; !over; {
		status, err := s.get(s.One, "/hello")
		select {
		case <-s.One.begun:
			over = true // the last request may have come too late
		default:
			require.NoError(t, err)
			require.Equal(t, 200, status)
			served++
		}
	}
	assert.Positive(t, served, "no request was served during DRAIN_DELAY")
	assert.GreaterOrEqual(t, time.Since(signalled), s.options.Drain.DrainDelay)

	require.NoError(t, <-s.ended)
	require.NoError(t, <-responses)
	require.NoError(t, <-responses)
	require.Len(t, s.events, 8)
	assert.Equal(t, []string{"one starts draining, draining", "two starts draining, draining"}, s.events[:2], "health must change first")
	assert.ElementsMatch(t, []string{"one shutting down, draining", "two shutting down, draining"}, s.events[2:4], "the servers must shut down at the same time")
	assert.ElementsMatch(t, []string{"one shut down, draining", "two shut down, draining"}, s.events[4:6])
	assert.Equal(t, []string{"admin shutting down, draining", "admin shut down, draining"}, s.events[6:], "the admin server must shut down last")
}

// After DRAIN_TIMEOUT requests in flight are cut off, and the error names the
// server that had them.
func TestRun_CutsOffAfterDrainTimeout(t *testing.T) {
	s := newService(t)
	s.options.Drain.DrainTimeout = 50 * time.Millisecond
	inFlight, over := make(chan struct{}), make(chan struct{})
	s.One.API.Get("/endless", func(http.ResponseWriter, *http.Request) { close(inFlight); <-over })
	s.run(t)
	response := make(chan error, 1)
	go func() {
		_, err := s.get(s.One, "/endless")
		response <- err
	}()
	<-inFlight
	s.signal()
	err := <-s.ended
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.ErrorContains(t, err, "one: requests canceled")
	assert.NotContains(t, err.Error(), "two")
	require.Error(t, <-response)
	close(over)
}

// brokenServer listens; its Serve returns err once fail is closed.
type brokenServer struct {
	*recordedServer
	err  error
	fail <-chan struct{}
}

func (b brokenServer) Serve() error {
	<-b.fail
	return b.err
}

// If a server fails, Run stops the others without DRAIN_DELAY.
func TestRun_ServerFailureStopsAll(t *testing.T) {
	s := newService(t)
	s.options.Drain.DrainDelay = time.Hour // must not be waited for
	fail := make(chan struct{})
	first, second := errors.New("accept: too many open files"), errors.New("accept: file table full")
	s.run(t, brokenServer{s.One, first, fail}, brokenServer{s.Two, second, fail})
	close(fail)
	select {
	case err := <-s.ended:
		require.ErrorIs(t, err, first)
		require.ErrorIs(t, err, second, "the error must contain the failure of every server")
	case <-time.After(timeout):
		require.Fail(t, "Run did not return")
	}
	assert.Equal(t, "draining", s.ready())
	_, err := s.get(s.Admin, "/metrics")
	require.Error(t, err, "the admin server still serves")
}

// The error names the variable and the address, and says what to do.
func TestRun_FailsIfPortIsTaken(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer taken.Close() //nolint:errcheck // nothing to do about it
	s := newService(t)
	second := httpserver.New(httpserver.Options{
		AddrVar: "HTTP_ADDR", Addr: taken.Addr().String(), Telemetry: kittest.Telemetry(t, io.Discard), Health: s.Health,
	})
	err = lifecycle.Run(s.ctx, s.options, second)
	require.EqualError(t, err, "HTTP_ADDR: listen tcp "+taken.Addr().String()+": bind: address already in use; "+
		"stop the process that listens there, or set HTTP_ADDR to an address with another port")
	require.ErrorIs(t, err, syscall.EADDRINUSE)
	assert.Equal(t, "starting", s.ready(), "health must not turn ready")
}

// Run serves before what Health requires is there, and is not ready. A signal stops it, and a
// failing server does.
func TestRun_StopsWhileNotReady(t *testing.T) {
	failure, fail := errors.New("accept: too many open files"), make(chan struct{})
	for name, c := range map[string]struct {
		two  func(s *service) lifecycle.Server
		stop func(s *service)
		err  error
	}{
		"signal": {
			two:  func(s *service) lifecycle.Server { return s.Two },
			stop: func(s *service) { s.signal() },
		},
		"failing server": {
			two:  func(s *service) lifecycle.Server { return brokenServer{s.Two, failure, fail} },
			stop: func(*service) { close(fail) },
			err:  failure,
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newService(t)
			s.Health.Require("keys", func(context.Context) (string, error) { return "", errors.New("down") })
			go func() { s.ended <- lifecycle.Run(s.ctx, s.options, s.One, c.two(s)) }()
			kittest.Eventually(t, func() bool { return s.ready() == "starting: waiting for keys" }, "waiting")
			status, err := s.get(s.One, "/livez")
			require.NoError(t, err)
			assert.Equal(t, 200, status)
			c.stop(s)
			select {
			case err := <-s.ended:
				require.ErrorIs(t, err, c.err)
			case <-time.After(timeout):
				require.Fail(t, "Run did not return")
			}
			assert.Equal(t, "draining", s.ready())
		})
	}
}

// A signal that comes before the servers serve stops the service too.
func TestRun_SignalDuringStart(t *testing.T) {
	s := newService(t)
	s.signal()
	require.NoError(t, lifecycle.Run(s.ctx, s.options, s.One, s.Two))
	assert.Equal(t, "draining", s.ready())
}
