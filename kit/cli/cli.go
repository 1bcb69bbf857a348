// Package cli is the command line of a service: what it does instead of serving
// when it is started with arguments. The subcommands probe and fault are there
// because the images have no shell, no curl and no grpcurl.
package cli

import (
	"context"
	"fmt"
	"io"

	"example.com/tandem/kit/config"
	"example.com/tandem/kit/instance"
)

// Run runs the subcommand in args. It returns false if args is empty: the
// service is to serve. C is the service's configuration, which --help lists below
// about.
func Run[C any](ctx context.Context, name, about string, args []string, environ map[string]string, out io.Writer) (done bool, err error) {
	if len(args) == 0 {
		return false, nil
	}
	switch args[0] {
	case "probe":
		return true, runProbe(ctx, args[1:], out)
	case "fault":
		cfg, err := config.Load[config.Server](environ)
		if err == nil {
			err = runFault(ctx, cfg.DebugAddr, args[1:], out)
		}
		return true, err
	case "--version", "-version", "version":
		_, err = fmt.Fprintln(out, name, instance.Version())
		return true, err
	case "--help", "-help", "-h", "help":
		help[C](name, about, out)
		return true, nil
	}
	return true, &config.Error{Msg: fmt.Sprintf("%s: unknown argument %q; see %s --help", name, args[0], name)}
}

func help[C any](name, about string, out io.Writer) {
	fmt.Fprintf(out, `%s

usage:
  %-27s serve until SIGTERM
  %-27s call a service by its name and show each step
  %-27s show, set or remove the fault of the service that runs here
  %-27s print the version
  %-27s print this

Environment, with defaults:
`, about, name, name+" probe URL", name+" fault [JSON|off]", name+" --version", name+" --help")
	config.Help[C](out)
	fmt.Fprint(out, `
Traces are exported where OTEL_EXPORTER_OTLP_ENDPOINT says (and the other OTEL_* variables).
POD_NAME, POD_NAMESPACE, POD_IP, NODE_NAME and NODE_ZONE say where this instance runs.
GOGC and GOMEMLIMIT tune Go's garbage collector, as for every Go program.
`)
}

// usageError ends a process with status 2.
type usageError struct{ msg string }

func (e usageError) Error() string { return e.msg }
func (usageError) ExitCode() int   { return 2 }
