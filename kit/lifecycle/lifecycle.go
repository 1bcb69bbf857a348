// Package lifecycle starts a service, waits for the signal that ends it, and
// ends it in an order in which no request is lost.
//
// This is how a pod stops. The times are those of deploy/base; every step ends
// early when it has nothing left to wait for, so that a pod without slow
// requests is gone after ten seconds.
//
//	from to   set by            what happens
//	 0 s      the API server    the pod is marked for deletion. Two things begin at
//	                            once: its address leaves DNS, nodes and gateways, and
//	                            kubelet calls the preStop hook. The grace period runs.
//	 0 –  5 s PRE_STOP_DELAY    preStop sleeps: the pod serves as if nothing had happened
//	 5 s      kubelet           SIGTERM. gRPC health turns NOT_SERVING, HTTP responses
//	                            carry "Connection: close"
//	 5 – 10 s DRAIN_DELAY       it serves, while callers that are still connected leave
//	10 – 25 s DRAIN_TIMEOUT     no new connections; it waits for requests in flight
//	25 – 26 s CutOffGrace       what is still in flight is cut off; its handlers return
//	26 – 27 s adminGrace        the admin and debug ports close: a drain can be observed
//	                            to its end
//	27 – 32 s FlushTimeout      the last spans are sent (package telemetry)
//	32 – 36 s                   margin, for a node that is busy
//	36 s      kubelet           SIGKILL, at terminationGracePeriodSeconds
//
// Run refuses to start if TERMINATION_GRACE_PERIOD is shorter than the sum of
// these steps, which stopTime computes.
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
	"sync"
	"syscall"
	"time"

	"google.golang.org/grpc/grpclog"

	"example.com/tandem/kit/config"
	"example.com/tandem/kit/health"
	"example.com/tandem/kit/telemetry"
)

const (
	// CutOffGrace is how long a Server's Shutdown may take after its context has
	// ended.
	CutOffGrace = time.Second
	// adminGrace is how long a scrape that is in flight may take at the end.
	adminGrace = time.Second
)

// stopTime returns the longest time that a process with these settings takes to
// stop, the sleep of its preStop hook included.
func stopTime(d config.Drain) time.Duration {
	return d.PreStopDelay + d.DrainDelay + d.DrainTimeout + CutOffGrace + adminGrace + telemetry.FlushTimeout
}

// checkStopTime returns a configuration error if the process would be killed
// before it has stopped.
func checkStopTime(d config.Drain) error {
	if d.TerminationGracePeriod == 0 || stopTime(d) <= d.TerminationGracePeriod {
		return nil
	}
	return config.Invalid("TERMINATION_GRACE_PERIOD", d.TerminationGracePeriod.String(), fmt.Sprintf(
		"want at least %s (PRE_STOP_DELAY %s + DRAIN_DELAY %s + DRAIN_TIMEOUT %s + %s to cut off requests, close ports and send spans); raise it with terminationGracePeriodSeconds, or lower DRAIN_TIMEOUT",
		stopTime(d), d.PreStopDelay, d.DrainDelay, d.DrainTimeout, CutOffGrace+adminGrace+telemetry.FlushTimeout))
}

// Main calls run with a context that ends on SIGTERM or SIGINT, and with the
// process's arguments, environment and standard output. It ends the process
// with status 0 if run returns nil, with the status that the error's ExitCode
// method returns (2 for a configuration error), else with 1. A second signal ends
// the process at once.
func Main(run func(ctx context.Context, args []string, environ map[string]string, out io.Writer) error) {
	environ := config.Environ(os.Environ())
	tune(environ)
	// gRPC logs to stderr by itself; make its lines JSON, as all others are.
	grpclog.SetLoggerV2(grpclog.NewLoggerV2(io.Discard, io.Discard,
		slog.NewLogLogger(slog.NewJSONHandler(os.Stderr, nil), slog.LevelWarn).Writer()))
	os.Exit(ExitCode(runUntilSignal(run, environ)))
}

func runUntilSignal(run func(ctx context.Context, args []string, environ map[string]string, out io.Writer) error, environ map[string]string) error {
	out := &lines{w: os.Stdout}
	defer out.Flush() // after a panic too, which then ends the process
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	context.AfterFunc(ctx, func() {
		out.Unbuffer() // a SIGKILL may follow, which leaves no time to flush
		stop()         // the next signal has its default effect
	})
	err := run(ctx, os.Args[1:], environ, out)
	if err != nil {
		out.Flush() // what led to the error comes before it
		fmt.Fprintln(os.Stderr, err)
	}
	return err
}

// ExitCode returns the status with which a process ends that failed with err.
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

// Server is what Run runs; packages httpserver and grpcserver have them.
type Server interface {
	// Listen opens the port.
	Listen() error
	// Serve serves until Shutdown, and then returns nil.
	Serve() error
	// StartDraining asks clients to connect elsewhere, and goes on serving.
	StartDraining()
	// Shutdown waits for what is in flight. When ctx ends first, it cuts the rest
	// off and returns an error within CutOffGrace.
	Shutdown(ctx context.Context) error
}

// Options of Run.
type Options struct {
	Log    *slog.Logger
	Health *health.Health
	// Admin servers are served until the others have shut down, so that a drain can
	// be observed.
	Admin []Server
	Drain config.Drain
	// Unknown environment variables are logged at the start.
	Unknown []config.Unknown
}

// Run opens all ports, serves until ctx ends or a server fails, drains and
// returns. The error joins all failures, requests that were cut off included. It
// is a configuration error if the drain does not fit the grace period.
func Run(ctx context.Context, o Options, servers ...Server) error {
	if err := checkStopTime(o.Drain); err != nil {
		return err
	}
	logStart(o.Log, o.Unknown)
	all := slices.Concat(o.Admin, servers)
	for _, s := range all {
		if err := s.Listen(); err != nil {
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
	o.Health.Ready()
	o.Log.Info("ready")

	var failure error
	select {
	case <-ctx.Done():
	case failure = <-failed:
	}

	o.Log.Info("draining", "delay", o.Drain.DrainDelay.String(), "timeout", o.Drain.DrainTimeout.String())
	o.Health.Drain()
	for _, s := range servers {
		s.StartDraining()
	}
	if failure == nil {
		time.Sleep(o.Drain.DrainDelay)
	}
	cutOff := shutdown(o.Drain.DrainTimeout, servers)
	_ = shutdown(adminGrace, o.Admin) // a scrape that is cut off is no failure
	serving.Wait()
	close(failed)
	for err := range failed { // those that failed beside the first, or while draining
		failure = errors.Join(failure, err)
	}
	o.Log.Info("drained")
	return errors.Join(failure, cutOff)
}

// shutdown shuts servers down side by side.
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
