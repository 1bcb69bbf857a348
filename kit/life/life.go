// Package life starts a service, waits for the signal that ends it, and ends
// it in an order in which no request is lost.
package life

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	"google.golang.org/grpc/grpclog"

	"example.com/tandem/kit/config"
	"example.com/tandem/kit/health"
)

// Main calls run with a context that ends on SIGTERM or SIGINT, and with the
// process's arguments, environment and standard output. It ends the
// process by what run returns: 0; 2 for an error with an ExitCode method that
// says so, such as a bad configuration; else 1. A second signal ends the
// process at once.
func Main(run func(ctx context.Context, args []string, environ map[string]string, out io.Writer) error) {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	// Once the first signal has come, the next one does what signals do.
	context.AfterFunc(ctx, stop)
	// gRPC logs to stderr by itself; let its lines be JSON, as all others are.
	grpclog.SetLoggerV2(grpclog.NewLoggerV2(io.Discard, io.Discard,
		slog.NewLogLogger(slog.NewJSONHandler(os.Stderr, nil), slog.LevelWarn).Writer()))
	// A service's live heap is a few MB, so that by Go's own setting (100) it is
	// collected every few hundred requests. At four times its size that takes a
	// quarter of the time, for some MB more; GOMEMLIMIT still bounds them.
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(400)
	}
	out := &lines{w: os.Stdout}
	err := run(ctx, os.Args[1:], config.Environ(os.Environ()), out)
	out.flush()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	os.Exit(ExitCode(err))
}

// ExitCode is the status with which a process ends that failed with err.
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

// Server is what Run runs; packages httpserver and grpcserver have them.
type Server interface {
	// Listen opens the port.
	Listen() error
	// Serve serves until Shutdown, and then returns nil.
	Serve() error
	// StartDraining tells clients to go elsewhere, and goes on serving.
	StartDraining()
	// Shutdown ends what it can before ctx ends, and then the rest.
	Shutdown(ctx context.Context) error
}

// Options of Run.
type Options struct {
	Log    *slog.Logger
	Health *health.Health
	// Admin is served for longer than the rest: drains want to be watched.
	Admin Server
	// DrainDelay is how long to serve on after the signal. Kubernetes takes a
	// pod out of its Services while it signals it, not before: for some seconds
	// callers do not know yet.
	DrainDelay time.Duration
	// DrainTimeout bounds the wait for requests in flight after that.
	DrainTimeout time.Duration
}

// Run opens all ports, serves until ctx ends or a server fails, drains and
// returns. The error joins what failed, requests that were cut off among it.
func Run(ctx context.Context, o Options, servers ...Server) error {
	all := append([]Server{o.Admin}, servers...)
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

	o.Log.Info("draining", "delay", o.DrainDelay.String(), "timeout", o.DrainTimeout.String())
	o.Health.Drain()
	for _, s := range servers {
		s.StartDraining()
	}
	if failure == nil {
		time.Sleep(o.DrainDelay)
	}
	limited, cancel := context.WithTimeout(context.Background(), o.DrainTimeout)
	defer cancel()
	cutOff := shutdown(limited, servers)
	// A second suffices for a scrape that is under way.
	brief, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = o.Admin.Shutdown(brief) // no one is promised anything on this port
	serving.Wait()
	close(failed)
	for err := range failed { // those that failed beside the first, or while draining
		failure = errors.Join(failure, err)
	}
	o.Log.Info("drained")
	return errors.Join(failure, cutOff)
}

// shutdown ends servers side by side.
func shutdown(ctx context.Context, servers []Server) error {
	errs := make([]error, len(servers))
	var wg sync.WaitGroup
	for i, s := range servers {
		wg.Go(func() { errs[i] = s.Shutdown(ctx) })
	}
	wg.Wait()
	return errors.Join(errs...)
}
