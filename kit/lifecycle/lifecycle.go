// Package lifecycle starts a service, waits for the signal that stops it, and
// stops it without losing a request. A service's main calls Main; its run
// function calls Run.
//
// # How a pod stops
//
// The times are the settings of deploy/base. The first two delays always take their
// full time. Each later step ends as soon as nothing is left to wait for, so that a pod
// without slow requests is gone after ten seconds.
//
//	from to   set by            what happens
//	 0 s      API server        The pod is marked for deletion, and the grace period
//	                            begins. Two things start at once: the pod's address is
//	                            removed from DNS, nodes and gateways, and kubelet runs
//	                            the preStop hook.
//	 0 –  5 s PRE_STOP_DELAY    preStop sleeps. The pod serves as before while the
//	                            removal of its address reaches callers.
//	 5 s      kubelet           SIGTERM. /readyz responds 503, gRPC health NOT_SERVING, and
//	                            HTTP responses carry "Connection: close". Log lines are
//	                            no longer buffered.
//	 5 – 10 s DRAIN_DELAY       The pod still serves, while connected callers leave.
//	10 – 25 s DRAIN_TIMEOUT     No new connections; gRPC sends GOAWAY; streams end.
//	                            Requests in flight finish.
//	25 – 26 s CutOffGrace       Requests still in flight are cut off; handlers return.
//	26 – 27 s adminGrace        The admin and debug ports close: until here, metrics show
//	                            the drain.
//	27 – 32 s FlushTimeout      The last spans are sent (package telemetry).
//	32 – 36 s                   Margin for a busy node.
//	36 s      kubelet           SIGKILL, at terminationGracePeriodSeconds.
//
// Run refuses to start if TERMINATION_GRACE_PERIOD is shorter than the sum of
// these steps without the margin.
package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"google.golang.org/grpc/grpclog"

	"example.com/tandem/kit/config"
	"example.com/tandem/kit/health"
	"example.com/tandem/kit/logtext"
	"example.com/tandem/kit/telemetry"
)

const (
	// CutOffGrace is how long a Server's Shutdown may still take after its context
	// has ended.
	CutOffGrace = time.Second
	// adminGrace is how long a scrape in flight may take when the admin ports close.
	adminGrace = time.Second
)

// RunFunc is the body of a service or a subcommand. ctx ends on SIGTERM or
// SIGINT; args, environ and out are the process's arguments without the program's
// name, its environment and its standard output.
type RunFunc func(ctx context.Context, args []string, environ map[string]string, out io.Writer) error

// Main calls run and ends the process: with status 0 if run returns nil, else with
// the ExitCode of its error. A second signal ends the process at once.
func Main(run RunFunc) {
	environ := config.Environ(os.Environ())
	tuneGC(environ)
	// grpc-go logs plain text to stderr by default; all other log lines are JSON.
	grpclog.SetLoggerV2(grpclog.NewLoggerV2(io.Discard, io.Discard,
		slog.NewLogLogger(slog.NewJSONHandler(os.Stderr, nil), slog.LevelWarn).Writer()))
	os.Exit(ExitCode(runUntilSignal(run, environ)))
}

func runUntilSignal(run RunFunc, environ map[string]string) error {
	out := &bufferedWriter{w: os.Stdout, text: textFormat(environ, logtext.IsTerminal(os.Stdout))}
	defer out.Flush() // also when run panics
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	context.AfterFunc(ctx, func() {
		out.Unbuffer() // from now on SIGKILL may come at any time
		stop()         // restore the default effect of signals
	})
	err := run(ctx, os.Args[1:], environ, out)
	if err != nil {
		out.Flush() // write the log lines before the error
		fmt.Fprintln(os.Stderr, err)
	}
	return err
}

// textFormat returns how log lines look, or nil if they are to be JSON.
func textFormat(environ map[string]string, terminal bool) *logtext.Format {
	format := environ["LOG_FORMAT"] // package config rejects invalid values
	if format == "json" || format != "text" && !terminal {
		return nil
	}
	return &logtext.Format{
		Color: terminal && logtext.Colored(func(key string) string { return environ[key] }),
		Hide:  func(key, _ string) bool { return key == "service" || key == "pod" }, // there is one process at a terminal
	}
}

// ExitCode returns the exit status of a process whose run function returned err: 0
// for nil, the result of the error's ExitCode method if there is one (2 for a
// configuration error), else 1.
func ExitCode(err error) int {
	var coded interface{ ExitCode() int }
	switch {
	case err == nil:
		return 0
	case errors.As(err, &coded):
		return coded.ExitCode()
	default:
		return 1
	}
}

// ErrDraining is the cause with which a server ends the context of a stream when it
// shuts down. The client connects again, to another instance.
var ErrDraining = errors.New("the server is draining; connect again")

// Server is a server that Run can run, such as those of packages httpserver and
// grpcserver.
type Server interface {
	// Listen opens the port. Its error starts with the variable that sets the
	// address and a colon.
	Listen() error
	// Serve serves until Shutdown, and then returns nil.
	Serve() error
	// StartDraining signals clients to connect elsewhere. The server continues to serve.
	StartDraining()
	// Shutdown waits for the requests in flight. If ctx ends first, it cuts them off
	// and returns an error within CutOffGrace.
	Shutdown(ctx context.Context) error
}

// Options of Run.
type Options struct {
	Log    *slog.Logger
	Health *health.Health
	// Admin servers shut down after the others, so that metrics show the drain.
	Admin []Server
	Drain config.Drain
	// Unknown environment variables are logged at the start.
	Unknown []config.Unknown
}

// Run opens all ports, waits until what Health requires is there, serves until ctx ends
// or a server fails, drains, and returns. The ports are open while it waits, so that
// probes show the reason. The error joins the errors of all servers, including those about
// requests that were cut off. Run returns a configuration error without opening a
// port if the drain does not fit the grace period.
func Run(ctx context.Context, o Options, servers ...Server) error {
	if err := checkStopTime(o.Drain); err != nil {
		return err
	}
	logStart(o.Log, o.Unknown)
	all := slices.Concat(o.Admin, servers)
	for _, s := range all {
		if err := listen(s); err != nil {
			return err
		}
	}

	failed := make(chan error, len(all))
	var serving sync.WaitGroup
	for _, s := range all {
		serving.Go(func() {
			if err := s.Serve(); err != nil {
				failed <- err
			}
		})
	}
	starting, endStart := context.WithCancel(ctx)
	serving.Go(func() {
		if o.Health.AwaitRequired(starting, o.Log) == nil {
			o.Health.Ready()
			o.Log.Info("ready")
		}
	})

	var failure error
	select {
	case <-ctx.Done():
	case failure = <-failed:
	}
	endStart()

	o.Log.Info("draining", "delay", o.Drain.DrainDelay.String(), "timeout", o.Drain.DrainTimeout.String())
	o.Health.Drain()
	for _, s := range servers {
		s.StartDraining()
	}
	if failure == nil {
		time.Sleep(o.Drain.DrainDelay)
	}
	cutOff := shutdown(o.Drain.DrainTimeout, servers)
	_ = shutdown(adminGrace, o.Admin) // losing a scrape is no failure
	serving.Wait()
	close(failed)
	for err := range failed { // servers that failed after the first, or while draining
		failure = errors.Join(failure, err)
	}
	o.Log.Info("drained")
	return errors.Join(failure, cutOff)
}

// checkStopTime returns a configuration error if kubelet would kill the process
// before it has stopped.
func checkStopTime(d config.Drain) error {
	if d.TerminationGracePeriod == 0 || stopTime(d) <= d.TerminationGracePeriod {
		return nil
	}
	return config.Invalid("TERMINATION_GRACE_PERIOD", d.TerminationGracePeriod.String(), fmt.Sprintf(
		"want at least %s (PRE_STOP_DELAY %s + DRAIN_DELAY %s + DRAIN_TIMEOUT %s + %s to cut off requests, close ports and send spans); "+
			"raise it together with the pod's terminationGracePeriodSeconds, or lower DRAIN_TIMEOUT",
		stopTime(d), d.PreStopDelay, d.DrainDelay, d.DrainTimeout, CutOffGrace+adminGrace+telemetry.FlushTimeout))
}

// stopTime returns the longest time that a pod with these settings takes to stop,
// from its deletion to the end of the process.
func stopTime(d config.Drain) time.Duration {
	return d.PreStopDelay + d.DrainDelay + d.DrainTimeout + CutOffGrace + adminGrace + telemetry.FlushTimeout
}

// listen opens the port of s. If the port is taken, the error says what to do.
func listen(s Server) error {
	err := s.Listen()
	if errors.Is(err, syscall.EADDRINUSE) {
		variable, _, _ := strings.Cut(err.Error(), ":")
		return fmt.Errorf("%w; stop the process that listens there, or set %s to an address with another port", err, variable)
	}
	return err
}

// shutdown shuts down all servers at the same time.
func shutdown(timeout time.Duration, servers []Server) error {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	errs := make([]error, len(servers))
	var wg sync.WaitGroup
	for i, s := range servers {
		wg.Go(func() { errs[i] = s.Shutdown(ctx) })
	}
	wg.Wait()
	return errors.Join(errs...)
}
