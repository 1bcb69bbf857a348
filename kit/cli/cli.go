// Package cli is the command line of a service: started with arguments, a service
// runs a subcommand instead of serving. The subcommands probe and fault exist
// because the images contain no shell, curl or grpcurl.
package cli

import (
	"context"
	"fmt"
	"io"

	"example.com/tandem/kit/config"
	"example.com/tandem/kit/instance"
)

// Run runs the subcommand in args and returns true. It returns false if args is
// empty, and the service then serves. name and about introduce the output of --help,
// which lists C, the configuration of the service, with its defaults.
func Run[C any](ctx context.Context, name, about string, args []string, environ map[string]string, out io.Writer) (done bool, err error) {
	if len(args) == 0 {
		return false, nil
	}
	switch args[0] {
	case "probe":
		return true, runProbe(ctx, environ["POD_NAMESPACE"], args[1:], out)
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
		printHelp[C](name, about, out)
		return true, nil
	}
	return true, usageError{fmt.Sprintf("%s: unknown argument %q; see %s --help", name, args[0], name)}
}

func printHelp[C any](name, about string, out io.Writer) {
	fmt.Fprintf(out, `%s

usage:
  %-27s serve until SIGTERM
  %-27s call a service by its name and print each step
  %-27s print, set or remove the fault of the service in this container
  %-27s print the version
  %-27s print this help

Environment variables, with defaults:
`, about, name, name+" probe URL", name+" fault [JSON|off]", name+" --version", name+" --help")
	config.Help[C](out)
	fmt.Fprint(out, `
OTEL_EXPORTER_OTLP_ENDPOINT and the other OTEL_* variables configure the export of traces.
POD_NAME, POD_NAMESPACE, POD_IP, NODE_NAME and NODE_ZONE describe this instance.
GOGC and GOMEMLIMIT configure Go's garbage collector.
`)
}

// usageError makes the process exit with status 2.
type usageError struct{ msg string }

func (e usageError) Error() string { return e.msg }
func (usageError) ExitCode() int   { return 2 }
