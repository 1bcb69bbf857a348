// Chaos runs the rows of docs/reliability.md on a cluster, and writes the table.
//
//	make kind-up deploy chaos
//	make chaos RUN='TestWhenANodeIs.*'    # some rows again; the others stay as they were
//	make chaos FORM=short                 # the short form of each row
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

// limit of a whole run: the rows take over an hour, half of which one has for
// itself.
const limit = 150 * time.Minute

type options struct {
	run   string
	short bool
	out   string
	doc   string
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	switch err := run(ctx, os.Args[1:], os.Stdout, os.Stderr); {
	case err == nil || errors.Is(err, flag.ErrHelp):
	default:
		fmt.Fprintln(os.Stderr, "chaos:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out, progress io.Writer) error {
	var o options
	flags := flag.NewFlagSet("chaos", flag.ContinueOnError)
	flags.SetOutput(progress)
	flags.StringVar(&o.run, "run", "", "rerun only the `tests` that this matches, and keep the other rows of the last run")
	flags.BoolVar(&o.short, "short", false, "run the short form of each row, as make e2e does")
	flags.StringVar(&o.out, "out", "out/chaos", "`folder` for chaos.md, chaos.json and the rows")
	flags.StringVar(&o.doc, "doc", "", "Markdown `file` in which to put the table in place of the last one")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q; see -help", flags.Arg(0))
	}
	rows, err := filepath.Abs(filepath.Join(o.out, "rows"))
	if err != nil {
		return err
	}
	if o.run == "" { // all of them anew
		if err := os.RemoveAll(rows); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(rows, 0o750); err != nil {
		return err
	}

	failed := test(ctx, o, rows, progress)
	if ctx.Err() != nil {
		return errors.New("interrupted; the table is as it was")
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

// test runs the rows, which leave a file each.
func test(ctx context.Context, o options, rows string, progress io.Writer) error {
	pattern, form := "^TestWhen", "full"
	if o.run != "" {
		pattern = o.run
	}
	if o.short {
		form = "short"
	}
	fmt.Fprintf(progress, "chaos: running the rows (%s form); all of them in full take over an hour\n", form)
	cmd := exec.CommandContext(ctx, "go", "test", "-count=1", "-v", "-timeout", limit.String(), "-run", pattern, ".")
	cmd.Dir = filepath.Join("deploy", "e2e")
	cmd.Env = append(os.Environ(), "GOWORK=off", "CHAOS="+form, "CHAOS_ROWS="+rows, "CHAOS_COMMIT="+commit(ctx))
	cmd.Stdout, cmd.Stderr = progress, progress
	// The tests put back what they have changed when they are interrupted, too.
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = time.Minute
	return cmd.Run()
}
