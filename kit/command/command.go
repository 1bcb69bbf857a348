// Package command is what a service does when it is called with arguments,
// instead of serving.
package command

import (
	"context"
	"fmt"
	"io"

	"example.com/tandem/kit/config"
	"example.com/tandem/kit/instance"
	"example.com/tandem/kit/probe"
)

// Run does what args say. It reports false if there are none: serve, then.
// C is the service's configuration, which --help lists below about.
func Run[C any](ctx context.Context, name, about string, args []string, out io.Writer) (done bool, err error) {
	if len(args) == 0 {
		return false, nil
	}
	switch args[0] {
	case "probe":
		return true, probe.Run(ctx, args[1:], out)
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
  %-22s serve until SIGTERM
  %-22s ask a service by its name, and show each step
  %-22s print the version
  %-22s print this

Environment, with defaults:
`, about, name, name+" probe URL", name+" --version", name+" --help")
	config.Help[C](out)
	fmt.Fprint(out, `
Traces are exported where OTEL_EXPORTER_OTLP_ENDPOINT says (and the other OTEL_* variables).
POD_NAME, POD_NAMESPACE, POD_IP, NODE_NAME and NODE_ZONE say where this instance runs.
`)
}
