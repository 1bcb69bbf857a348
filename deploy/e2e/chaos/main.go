// Chaos runs the TestReliability tests on a cluster and writes the table of
// docs/reliability.md from their rows. Run it from the root of the repository:
//
//	make kind-up deploy chaos
//	make chaos RUN='TestReliability_Node.*'   # run some rows again and keep the others
//	make chaos FORM=short                     # run the short form of each row
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"
)

// timeout of a whole run. All rows in full form take over an hour, half of it for one row.
const timeout = 150 * time.Minute

type options struct {
	run   string
	short bool
	out   string
	doc   string
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout, os.Stderr); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "chaos:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out, progress io.Writer) error {
	o, err := parse(args, progress)
	if err != nil {
		return err
	}
	rows, err := filepath.Abs(filepath.Join(o.out, "rows"))
	if err != nil {
		return err
	}
	if o.run == "" {
		if err := os.RemoveAll(rows); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(rows, 0o750); err != nil {
		return err
	}

	failed := runTests(ctx, o, rows, progress)
	if ctx.Err() != nil {
		return errors.New("interrupted; the table is unchanged")
	}
	report, err := collect(ctx, rows)
	if err != nil {
		return errors.Join(failed, err)
	}
	if err := report.write(o.out, o.doc); err != nil {
		return errors.Join(failed, err)
	}
	if _, err := io.WriteString(out, report.markdown()); err != nil {
		return err
	}
	fmt.Fprintf(progress, "chaos: the table is in %s\n", filepath.Join(o.out, "chaos.md"))
	if failed != nil {
		return fmt.Errorf("not every row held: %w", failed)
	}
	return nil
}

func parse(args []string, usage io.Writer) (options, error) {
	var o options
	flags := flag.NewFlagSet("chaos", flag.ContinueOnError)
	flags.SetOutput(usage)
	flags.StringVar(&o.run, "run", "", "run only the `tests` that match this pattern, and keep the other rows of the last run")
	flags.BoolVar(&o.short, "short", false, "run the short form of each row, as make e2e does")
	flags.StringVar(&o.out, "out", "out/chaos", "`folder` for chaos.md, chaos.json and the rows")
	flags.StringVar(&o.doc, "doc", "", "Markdown `file` whose table is replaced")
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	if flags.NArg() > 0 {
		return o, fmt.Errorf("unexpected argument %q; see -help", flags.Arg(0))
	}
	return o, nil
}

// runTests runs the tests, each of which writes a file to the folder rows.
func runTests(ctx context.Context, o options, rows string, progress io.Writer) error {
	pattern, form := "^TestReliability_", "full"
	if o.run != "" {
		pattern = o.run
	}
	if o.short {
		form = "short"
	}
	fmt.Fprintf(progress, "chaos: running the rows in %s form; all rows in full form take over an hour\n", form)
	cmd := exec.CommandContext(ctx, "go", "test", "-count=1", "-v", "-timeout", timeout.String(), "-run", pattern, ".")
	cmd.Dir = filepath.Join("deploy", "e2e")
	cmd.Env = append(os.Environ(), "GOWORK=off", "CHAOS="+form, "CHAOS_ROWS="+rows, "CHAOS_COMMIT="+commit(ctx))
	cmd.Stdout, cmd.Stderr = progress, progress
	// Interrupted tests need time to restore what they changed.
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = time.Minute
	return cmd.Run()
}
