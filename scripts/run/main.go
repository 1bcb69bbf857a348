// Run builds both services, starts them on this machine, shows one call over each
// transport, and runs them until Ctrl-C. `make run` starts it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"syscall"

	"example.com/tandem/kit/logtext"
)

const usage = `run builds service-a and service-b, starts them on this machine, and calls service-b once over
each transport. Start it with make run, or from the root of the repository. Ctrl-C stops both
services; a second Ctrl-C kills them.

usage: go run ./scripts/run [flags]

Flags:
  --bin DIR    folder of the binaries (default bin)
  --help       print this

Environment, with defaults; the services get every other variable unchanged:
  SERVICE_A_HTTP_PORT   8080  service-a's API and page
  SERVICE_A_ADMIN_PORT  8081  its metrics
  SERVICE_A_DEBUG_PORT  8082  its fault switch, and pprof if PPROF is on
  SERVICE_B_HTTP_PORT   8090  service-b's API
  SERVICE_B_ADMIN_PORT  8091  its metrics
  SERVICE_B_DEBUG_PORT  8092  its fault switch, and pprof if PPROF is on
  SERVICE_B_GRPC_PORT   9090  its gRPC
  DRAIN_DELAY           0s    a short stop; in a pod it is 5s
  FAULTS                on    the fault switches at the debug ports
  HEALTH_DETAILS        on    /health shows pod, node and addresses
  REFLECTION            on    grpcurl needs no .proto
  LOG_FORMAT            text  json prints log lines as the services write them
  NO_COLOR                    any value turns colors off
`

func main() {
	// On Linux the services are killed when the thread that started them ends. Keep
	// this thread until the process exits.
	runtime.LockOSThread()
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	os.Exit(run(os.Args[1:], signals))
}

// run returns the exit status. The services have exited when it returns.
func run(args []string, signals <-chan os.Signal) int {
	flags := flag.NewFlagSet("run", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	bin := flags.String("bin", "bin", "")
	err := flags.Parse(args)
	if errors.Is(err, flag.ErrHelp) {
		fmt.Print(usage)
		return 0
	}
	if err == nil && flags.NArg() > 0 {
		err = fmt.Errorf("unknown argument %q; see --help", flags.Arg(0))
	}
	if err != nil {
		return fail(2, err)
	}
	set, err := readSettings(os.Getenv)
	if err != nil {
		return fail(2, err)
	}
	if err := portsFree(set.ports()); err != nil {
		return fail(1, err)
	}

	stopping, stop := context.WithCancel(context.Background())
	killing, kill := context.WithCancel(context.Background())
	defer kill() // ends the goroutine
	go func() {
		for _, then := range []func(){stop, kill} {
			select {
			case <-signals:
				then()
			case <-killing.Done():
			}
		}
	}()
	out := &output{w: os.Stdout, color: logtext.IsTerminal(os.Stdout) && logtext.Colored(os.Getenv), raw: set.rawLogs}
	services := set.services()
	code := 0
	// After the signal to stop, errors are its consequence.
	if err := serve(stopping, services, *bin, set, out); err != nil && stopping.Err() == nil {
		code = fail(1, err)
	}
	stop()
	if err := waitAll(killing, services); err != nil && code == 0 {
		code = fail(1, err)
	}
	if code == 0 {
		out.print("stopped")
	}
	return code
}

// serve starts the services, and returns when ctx ends or a service fails.
func serve(ctx context.Context, services []*service, bin string, set settings, out *output) error {
	for _, s := range services {
		out.print("building " + s.name)
		if err := s.build(ctx, bin); err != nil {
			return err
		}
	}
	for _, s := range services {
		if err := s.start(ctx, out); err != nil {
			return err
		}
		out.print(fmt.Sprintf("started %s, process %d", s.name, s.cmd.Process.Pid))
	}
	for _, s := range services {
		if err := s.waitReady(ctx); err != nil {
			return err
		}
	}
	out.print(greeting(ctx, set))
	select {
	case <-ctx.Done():
		out.print("stopping: the services drain; Ctrl-C again kills them")
		return nil
	case <-services[0].done:
		return services[0].exitedEarly("")
	case <-services[1].done:
		return services[1].exitedEarly("")
	}
}

// waitAll waits until the services, which have been signaled, have exited.
func waitAll(killing context.Context, services []*service) error {
	var errs []error
	for _, s := range services {
		if s.done != nil {
			errs = append(errs, s.wait(killing))
		}
	}
	return errors.Join(errs...)
}

func fail(code int, err error) int {
	fmt.Fprintln(os.Stderr, err)
	return code
}
