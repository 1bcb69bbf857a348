// Bench compares the pair with the floor: the least code that does the same (package
// floor); or with another pair, to see what settings cost (-env) or what has changed since
// another checkout (-base). Both run at the same time on loopback, and get the same load
// in turns, so that other load of the machine affects both.
//
//	make bench
//	go run ./scripts/bench -c 32 -via grpc -rounds 9
//	go run ./scripts/bench -c 32 -env LOG_LEVEL=warn
//	git worktree add /tmp/before main~9 && go run ./scripts/bench -c 32 -base /tmp/before
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var wrong *usageError
	switch err := run(ctx, os.Args[1:], os.Stdout, os.Stderr); {
	case err == nil || errors.Is(err, flag.ErrHelp):
	case errors.As(err, &wrong):
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(2)
	case ctx.Err() != nil:
		fmt.Fprintln(os.Stderr, "bench: interrupted; everything is stopped")
		os.Exit(1)
	default:
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out, progress io.Writer) error {
	o, err := parse(args, out)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, o.limit())
	defer cancel()
	report, err := measure(ctx, o, progress)
	if err != nil {
		return err
	}
	if o.json != "" {
		if err := report.writeJSON(o.json); err != nil {
			return err
		}
	}
	report.print(out)
	if o.check && !report.fastEnough() {
		return fmt.Errorf("below %.2f of the floor's throughput at c = %d", wantRatio, verdictC)
	}
	return nil
}

// options are the values of the flags.
type options struct {
	rounds int
	round  time.Duration
	c      []int
	via    []string
	json   string
	check  bool
	env    []string // settings of the pair, each KEY=VALUE
	base   string   // a checkout; "" for this one
}

const (
	floor = "floor" // the least code that does the same
	base  = "base"  // the pair of options.base, without options.env
)

// other returns what the pair is compared with.
func (o options) other() string {
	if len(o.env) > 0 || o.base != "" {
		return base
	}
	return floor
}

// usageError is an invalid flag; the process exits with status 2.
type usageError struct{ error }

func parse(args []string, out io.Writer) (options, error) {
	var o options
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.SetOutput(out)
	flags.Usage = func() {
		fmt.Fprintln(out, "Bench compares the pair with the floor, the least code that does the same,\nor with another pair: that of -base, without the settings of -env.\n\nusage: go run ./scripts/bench [flags]")
		flags.PrintDefaults()
	}
	c := flags.String("c", "1,32,256", "numbers of calls in flight: a `list` with one entry for each measurement")
	via := flags.String("via", "http,grpc", "transports, a `list`")
	flags.IntVar(&o.rounds, "rounds", 5, "`number` of rounds of each measurement")
	flags.DurationVar(&o.round, "round", 2*time.Second, "`duration` of a round, for each side")
	flags.StringVar(&o.json, "json", "", "write the figures to a `file` too")
	flags.BoolVar(&o.check, "check", false, fmt.Sprintf("fail below %.2f of the floor's throughput at c = %d; not for a busy machine", wantRatio, verdictC))
	flags.Func("env", "a setting of the pair, `KEY=VALUE`; may be repeated. The pair is then compared with one without", func(pair string) error {
		if key, _, ok := strings.Cut(pair, "="); !ok || key == "" {
			return errors.New("want KEY=VALUE")
		}
		o.env = append(o.env, pair)
		return nil
	})
	flags.StringVar(&o.base, "base", "", "compare with the pair of another checkout, in a `directory`")
	if err := flags.Parse(args); errors.Is(err, flag.ErrHelp) {
		return o, err
	} else if err != nil {
		return o, &usageError{err}
	}
	for text := range strings.SplitSeq(*c, ",") {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 || n > 512 {
			return o, &usageError{fmt.Errorf("-c %q: want numbers from 1 to 512, such as 1,32,256", *c)}
		}
		o.c = append(o.c, n)
	}
	for text := range strings.SplitSeq(*via, ",") {
		if text != "http" && text != "grpc" {
			return o, &usageError{fmt.Errorf("-via %q: want http, grpc or both", *via)}
		}
		o.via = append(o.via, text)
	}
	switch {
	case flags.NArg() > 0:
		return o, &usageError{fmt.Errorf("unknown argument %q", flags.Arg(0))}
	case o.rounds < 1:
		return o, &usageError{fmt.Errorf("-rounds %d: want 1 or more", o.rounds)}
	case o.round <= 0:
		return o, &usageError{fmt.Errorf("-round %s: want more than 0", o.round)}
	case o.check && o.other() != floor:
		return o, &usageError{errors.New("-check compares with the floor, which -env and -base do not")}
	case o.check && !slices.Contains(o.c, verdictC):
		return o, &usageError{fmt.Errorf("-check needs c = %d, which -c %s does not include", verdictC, *c)}
	}
	return o, nil
}

// warmUp is the time under load before a round is measured, in which connections are
// opened and the garbage of the other side is collected.
func (o options) warmUp() time.Duration { return min(o.round/5, 300*time.Millisecond) }

// limit is the time limit of a run, much more than it needs.
func (o options) limit() time.Duration {
	rounds := len(o.c) * len(o.via) * (o.rounds + 1) * 2
	return 10*time.Minute + 2*time.Duration(rounds)*(o.round+o.warmUp())
}
