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

// enough is longer than anything here takes, unless it hangs.
const enough = 30 * time.Second

func TestMain(m *testing.M) {
	if how := os.Getenv("TEST_RUN"); how != "" {
		lifecycle.Main(programs[how])
	}
	goleak.VerifyTestMain(m)
}

// programs are what the test binary is when TEST_RUN names one of them.
var programs = map[string]func(ctx context.Context, args []string, environ map[string]string, out io.Writer) error{
	"until told to stop": func(ctx context.Context, args []string, environ map[string]string, out io.Writer) error {
		_, _ = fmt.Fprintln(out, "started", len(args), environ["GREETING"])
		<-ctx.Done()
		_, _ = fmt.Fprintln(out, "stopped")
		return nil
	},
	"fail": func(context.Context, []string, map[string]string, io.Writer) error {
		return errors.New("out of cheese")
	},
	"wrong usage": func(context.Context, []string, map[string]string, io.Writer) error {
		return fmt.Errorf("read the configuration: %w", errors.Join(config.Invalid("A", "x", "want y"), config.Invalid("B", "x", "want y")))
	},
	"warn and be killed": func(ctx context.Context, _ []string, environ map[string]string, out io.Writer) error {
		tel, err := telemetry.New(ctx, instance.Instance{}, slog.LevelInfo, environ, out)
		if err != nil {
			return err
		}
		tel.Log.Info("before it")
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
		time.Sleep(time.Second) // far longer than the end of ctx takes to be noticed
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
	"not heed the first signal": func(ctx context.Context, _ []string, _ map[string]string, out io.Writer) error {
		_, _ = fmt.Fprintln(out, "started")
		<-ctx.Done()
		// Main gives the signals back a moment after the first, so more than one may be needed.
		for range 1000 {
			_ = syscall.Kill(os.Getpid(), syscall.SIGTERM)
			time.Sleep(10 * time.Millisecond)
		}
		return nil
	},
}

func start(t *testing.T, program string, environ ...string) *kittest.Process {
	t.Helper()
	return kittest.Start(t, os.Args[0], append(environ, "TEST_RUN="+program, "GREETING=hello")...)
}

func awaitLog(t *testing.T, p *kittest.Process, line string) {
	t.Helper()
	kittest.Eventually(t, func() bool { return strings.Contains(p.Log.String(), line) }, line)
}

func TestASignalEndsAProcessWell(t *testing.T) {
	for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		t.Run(signal.String(), func(t *testing.T) {
			p := start(t, "until told to stop")
			awaitLog(t, p, "started 0 hello\n")
			p.Signal(t, signal)
			assert.Zero(t, p.Wait(t, enough))
			assert.True(t, strings.HasSuffix(p.Log.String(), "stopped\n"), p.Log)
		})
	}
}

func TestTheExitStatusSaysWhoseFaultItWas(t *testing.T) {
	p := start(t, "fail")
	assert.Equal(t, 1, p.Wait(t, enough))
	assert.Equal(t, "out of cheese\n", p.Log.String())

	p = start(t, "wrong usage")
	assert.Equal(t, 2, p.Wait(t, enough))
	assert.Equal(t, "read the configuration: A=\"x\": want y\nB=\"x\": want y\n", p.Log.String())
}

func TestASecondSignalEndsAProcessAtOnce(t *testing.T) {
	p := start(t, "not heed the first signal")
	awaitLog(t, p, "started")
	p.Signal(t, syscall.SIGTERM)
	assert.Equal(t, -1, p.Wait(t, enough), "the signal ended it, not its own will")
}

// A warning is written before the process can die of its reason, and so are the
// lines before it.
func TestMain_WritesWarningsAtOnce(t *testing.T) {
	p := start(t, "warn and be killed")
	assert.Equal(t, -1, p.Wait(t, enough))
	assert.Regexp(t, `(?s)"msg":"before it".*"msg":"the reason"`, p.Log.String())
}

func TestMain_FlushesOnPanic(t *testing.T) {
	p := start(t, "panic")
	assert.Equal(t, 2, p.Wait(t, enough))
	assert.Contains(t, p.Log.String(), "the last line\n")
	assert.Contains(t, p.Log.String(), "panic: on purpose")
}

// Once the process is to stop, it may be killed at any time: no line waits.
func TestMain_WritesAtOnceWhileDraining(t *testing.T) {
	p := start(t, "be killed while draining")
	awaitLog(t, p, "started\n")
	p.Signal(t, syscall.SIGTERM)
	assert.Equal(t, -1, p.Wait(t, enough))
	assert.Contains(t, p.Log.String(), "the last line\n")
}

// The first line says how Go's runtime is set: by GOGC and GOMEMLIMIT if they are
// set, else by tune, with a soft limit of 90 % of MEMORY_LIMIT.
func TestMain_LogsEffectiveSettings(t *testing.T) {
	const limit = "MEMORY_LIMIT=134217728" // 128 MiB
	for _, c := range []struct {
		environ []string
		want    string
	}{
		{nil, `"msg":"starting",.*"gogc":GC,"gomemlimit":"off"`},
		{[]string{limit}, `"gogc":GC,"gomemlimit":"115MiB"`},
		{[]string{limit, "GOMEMLIMIT=64MiB", "GOGC=50"}, `"gogc":50,"gomemlimit":"64MiB"`},
		{[]string{"GOMAXPROCS=1"}, `"gomaxprocs":1,`},
	} {
		p := start(t, "log its settings", c.environ...)
		require.Equal(t, 0, p.Wait(t, enough))
		first, rest, _ := strings.Cut(p.Log.String(), "\n")
		assert.Regexp(t, strings.ReplaceAll(c.want, "GC", strconv.Itoa(lifecycle.GCPercent)), first, c.environ)
		assert.Regexp(t, `"level":"WARN",.*"name":"MESAGE","nearest":"MESSAGE"`, rest)
	}
}

// The start fails if the process would be killed before it has stopped. The sum
// has every step of the timeline in it: 3 s of a preStop hook, 5 s of delay, 10 s
// for requests in flight, 1 s to cut them off, 1 s for the admin port and 5 s to
// send spans.
func TestRun_ChecksTheGracePeriod(t *testing.T) {
	s := newService(t)
	s.options.Drain = config.Drain{PreStopDelay: 3 * time.Second, DrainDelay: 5 * time.Second, DrainTimeout: 10 * time.Second}
	s.signal() // one that starts ends at once

	s.options.Drain.TerminationGracePeriod = 25*time.Second - 1
	err := lifecycle.Run(s.ctx, s.options, s.One)
	require.EqualError(t, err, `TERMINATION_GRACE_PERIOD="24.999999999s": want at least 25s (PRE_STOP_DELAY 3s + DRAIN_DELAY 5s + DRAIN_TIMEOUT 10s `+
		`+ 7s to cut off requests, close ports and send spans); raise it with terminationGracePeriodSeconds, or lower DRAIN_TIMEOUT`)
	assert.Equal(t, 2, lifecycle.ExitCode(err))
	assert.Equal(t, "starting", s.ready())

	s.options.Drain.DrainDelay, s.options.Drain.PreStopDelay = 0, 8*time.Second // the same sum, without the wait
	s.options.Drain.TerminationGracePeriod = 25 * time.Second
	require.NoError(t, lifecycle.Run(s.ctx, s.options, s.One))
}

func TestExitCodeOfNoErrorIsZero(t *testing.T) {
	assert.Zero(t, lifecycle.ExitCode(nil))
}

// witnessed is a real server; the test hears what is done to it, and when.
type witnessed struct {
	*httpserver.Server
	name  string
	tell  func(event string)
	begun chan struct{} // closed when Shutdown begins
}

func (w *witnessed) StartDraining() {
	w.tell(w.name + " starts draining")
	w.Server.StartDraining()
}

func (w *witnessed) Shutdown(ctx context.Context) error {
	w.tell(w.name + " shutting down")
	close(w.begun)
	err := w.Server.Shutdown(ctx)
	w.tell(w.name + " shut down")
	return err
}

// service is one that lifecycle runs: two APIs and an admin server.
type service struct {
	Health          *health.Health
	Admin, One, Two *witnessed
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
	tell := func(event string) {
		s.mu.Lock()
		defer s.mu.Unlock()
		ready := httptest.NewRecorder()
		s.Health.IsReady(ready, nil)
		s.events = append(s.events, event+", "+strings.TrimSpace(ready.Body.String()))
	}
	api := func(name string) *witnessed {
		server := httpserver.New(httpserver.Options{AddrVar: name, Addr: "127.0.0.1:0", Telemetry: kittest.Telemetry(t, io.Discard), Health: s.Health})
		return &witnessed{server, name, tell, make(chan struct{})}
	}
	s.One, s.Two = api("one"), api("two")
	admin := httpserver.NewAdmin("admin", "127.0.0.1:0", kittest.Telemetry(t, io.Discard))
	s.Admin = &witnessed{admin, "admin", tell, make(chan struct{})}
	s.options = lifecycle.Options{Log: slog.New(slog.DiscardHandler), Health: s.Health, Admin: []lifecycle.Server{s.Admin}, Drain: config.Drain{DrainTimeout: enough}}
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

func (s *service) ready() string {
	w := httptest.NewRecorder()
	s.Health.IsReady(w, nil)
	return strings.TrimSpace(w.Body.String())
}

// ask asks one of the servers, on a new connection or one that is idle.
func (s *service) ask(w *witnessed, path string) (status int, err error) {
	req, err := http.NewRequest(http.MethodGet, "http://"+w.Addr().String()+path, nil)
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

func TestTheDrainLosesNothing(t *testing.T) {
	s := newService(t)
	s.options.Drain.DrainDelay = 2 * time.Second
	inFlight := make(chan struct{}, 2)
	// Each waits for the other server's shutdown to begin: one after the other, neither would end.
	wait := func(other *witnessed) http.HandlerFunc {
		return func(http.ResponseWriter, *http.Request) {
			inFlight <- struct{}{}
			<-other.begun
			status, err := s.ask(s.Admin, "/metrics")
			assert.NoError(t, err, "the drain can be watched to its end")
			assert.Equal(t, 200, status)
		}
	}
	s.One.API.Get("/wait", wait(s.Two))
	s.Two.API.Get("/wait", wait(s.One))
	s.One.API.Get("/hello", func(http.ResponseWriter, *http.Request) {})
	s.run(t)

	answers := make(chan error, 2)
	for _, w := range []*witnessed{s.One, s.Two} {
		go func() {
			status, err := s.ask(w, "/wait")
			if err == nil && status != 200 {
				err = fmt.Errorf("status %d", status)
			}
			answers <- err
		}()
	}
	<-inFlight
	<-inFlight

	signalled := time.Now()
	s.signal()
	kittest.Eventually(t, func() bool { return s.ready() == "draining" }, "draining")
	served := 0
	for over := false; !over; {
		status, err := s.ask(s.One, "/hello")
		select {
		case <-s.One.begun:
			over = true // and what was asked last may have come too late
		default:
			require.NoError(t, err)
			require.Equal(t, 200, status)
			served++
		}
	}
	assert.Positive(t, served, "it serves on while callers do not know yet")
	assert.GreaterOrEqual(t, time.Since(signalled), s.options.Drain.DrainDelay)

	require.NoError(t, <-s.ended)
	require.NoError(t, <-answers)
	require.NoError(t, <-answers)
	require.Len(t, s.events, 8)
	assert.Equal(t, []string{"one starts draining, draining", "two starts draining, draining"}, s.events[:2], "health turns first")
	assert.ElementsMatch(t, []string{"one shutting down, draining", "two shutting down, draining"}, s.events[2:4], "side by side")
	assert.ElementsMatch(t, []string{"one shut down, draining", "two shut down, draining"}, s.events[4:6])
	assert.Equal(t, []string{"admin shutting down, draining", "admin shut down, draining"}, s.events[6:], "admin last")
}

func TestTheDrainIsBounded(t *testing.T) {
	s := newService(t)
	s.options.Drain.DrainTimeout = 50 * time.Millisecond
	inFlight, over := make(chan struct{}), make(chan struct{})
	s.One.API.Get("/endless", func(http.ResponseWriter, *http.Request) { close(inFlight); <-over })
	s.run(t)
	answer := make(chan error, 1)
	go func() {
		_, err := s.ask(s.One, "/endless")
		answer <- err
	}()
	<-inFlight
	s.signal()
	err := <-s.ended
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.ErrorContains(t, err, "one: requests canceled")
	assert.NotContains(t, err.Error(), "two")
	require.Error(t, <-answer)
	close(over)
}

// broken is a server that cannot serve: where the others listen, they serve.
type broken struct {
	*witnessed
	err  error
	fail <-chan struct{}
}

func (b broken) Serve() error {
	<-b.fail
	return b.err
}

func TestAServerThatFailsEndsTheRest(t *testing.T) {
	s := newService(t)
	s.options.Drain.DrainDelay = time.Hour // no one waits for a service that is broken
	fail := make(chan struct{})
	first, second := errors.New("accept: too many open files"), errors.New("accept: and so did this")
	s.run(t, broken{s.One, first, fail}, broken{s.Two, second, fail})
	close(fail)
	select {
	case err := <-s.ended:
		require.ErrorIs(t, err, first)
		require.ErrorIs(t, err, second, "each that failed is told")
	case <-time.After(enough):
		require.Fail(t, "it goes on")
	}
	assert.Equal(t, "draining", s.ready())
	_, err := s.ask(s.Admin, "/metrics")
	require.Error(t, err, "admin has ended too")
}

func TestAPortThatIsTakenEndsTheStart(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer taken.Close() //nolint:errcheck // its work is done
	s := newService(t)
	late := httpserver.New(httpserver.Options{AddrVar: "HTTP_ADDR", Addr: taken.Addr().String(), Telemetry: kittest.Telemetry(t, io.Discard), Health: s.Health})
	err = lifecycle.Run(s.ctx, s.options, late)
	require.ErrorContains(t, err, "HTTP_ADDR: listen tcp "+taken.Addr().String())
	require.ErrorIs(t, err, syscall.EADDRINUSE)
	assert.Equal(t, "starting", s.ready(), "it was never ready")
}

func TestASignalDuringTheStartIsHeeded(t *testing.T) {
	s := newService(t)
	s.signal()
	require.NoError(t, lifecycle.Run(s.ctx, s.options, s.One, s.Two))
	assert.Equal(t, "draining", s.ready())
}
