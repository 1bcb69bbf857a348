package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"time"
)

const (
	// starts is how often each service is started to measure the time until it is ready.
	starts = 5
	// rest is how long a process has no load before its memory is read.
	rest = time.Second
)

// side is one side of the comparison: the pair, or what it is compared with.
type side struct{ a, b *process }

// measure builds and starts both sides, puts them under load, and stops them.
func measure(ctx context.Context, o options, progress io.Writer) (r *Report, err error) {
	root, err := findRoot()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "tandem-bench-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()

	fmt.Fprintln(progress, "building the programs, as for release")
	programs, sizes, err := prepare(ctx, root, dir, o)
	if err != nil {
		return nil, err
	}
	r = &Report{
		When: time.Now().UTC().Truncate(time.Second), Go: runtime.Version(),
		Platform: runtime.GOOS + "/" + runtime.GOARCH, CPUs: runtime.NumCPU(),
		Other: o.other(), Env: o.env, Base: o.base, Rounds: o.rounds, RoundSeconds: o.round.Seconds(),
	}
	fmt.Fprintf(progress, "starting each service %d times\n", starts)
	readyIn := map[string]float64{}
	for _, p := range programs[:2] {
		if readyIn[p.name], err = timeStarts(ctx, p, dir); err != nil {
			return nil, err
		}
	}

	var all []*process
	defer func() {
		for _, s := range all {
			s.stop()
		}
	}()
	for _, p := range programs {
		s, err := start(ctx, p, dir)
		if err != nil {
			return nil, err
		}
		all = append(all, s)
	}
	time.Sleep(rest)
	for i, s := range all {
		memory, err := resident(s.cmd.Process.Pid)
		if err != nil {
			return nil, err
		}
		r.Processes = append(r.Processes, Process{Name: s.name, ReadyMS: readyIn[s.name], RestMiB: memory, BinaryMB: float64(sizes[i]) / 1e6})
	}

	pair, other := side{all[1], all[0]}, side{all[3], all[2]}
	ours := func() (sum time.Duration) {
		for _, s := range all {
			sum += cpuTime(s.cmd.Process.Pid)
		}
		return sum + cpuTime(os.Getpid())
	}
	oursBefore := ours()
	usedBefore, givenBefore := allTime()
	for _, via := range o.via {
		for _, c := range o.c {
			row, err := compare(ctx, o, via, c, pair, other, progress)
			if err != nil {
				return nil, err
			}
			r.Load = append(r.Load, row)
		}
	}
	if used, given := allTime(); given > givenBefore {
		others := (used - usedBefore) - (ours() - oursBefore)
		r.OthersCPU = max(0, others.Seconds()/(given-givenBefore).Seconds())
	}
	time.Sleep(rest)
	for i, s := range all {
		if r.Processes[i].LoadedMiB, err = resident(s.cmd.Process.Pid); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// prepare builds the programs and returns how to start them: b and a of the pair, then b
// and a of what it is compared with. Only their addresses are set, and o.env for the pair.
func prepare(ctx context.Context, root, dir string, o options) (programs []program, sizes []int64, err error) {
	dirB, dirA, dirFloor := filepath.Join(root, "service-b"), filepath.Join(root, "service-a"), filepath.Join(root, "scripts/bench/floor")
	type pair struct{ b, a program }
	compared := pair{program{name: "floor-b", dir: dirFloor, args: []string{"b"}}, program{name: "floor-a", dir: dirFloor, args: []string{"a"}}}
	if o.other() == base {
		checkout := cmp.Or(o.base, root)
		compared = pair{program{name: "base-b", dir: filepath.Join(checkout, "service-b")}, program{name: "base-a", dir: filepath.Join(checkout, "service-a")}}
	}
	addrs, err := freeAddrs(10) // 5 for each side
	if err != nil {
		return nil, nil, err
	}
	for _, side := range []pair{{program{name: "service-b", dir: dirB, env: o.env}, program{name: "service-a", dir: dirA, env: o.env}}, compared} {
		b, a := side.b, side.a
		b.addr, a.addr = addrs[0], addrs[3]
		b.env = append([]string{"HTTP_ADDR=" + b.addr, "GRPC_ADDR=" + addrs[1], "ADMIN_ADDR=" + addrs[2]}, b.env...)
		a.env = append([]string{
			"HTTP_ADDR=" + a.addr, "ADMIN_ADDR=" + addrs[4], "SERVICE_B_HTTP_URL=http://" + b.addr, "SERVICE_B_GRPC_TARGET=dns:///" + addrs[1],
		}, a.env...)
		programs, addrs = append(programs, b, a), addrs[5:]
	}
	sizes = make([]int64, len(programs))
	for i := range programs {
		p := &programs[i]
		p.binary = filepath.Join(dir, p.name)
		if runtime.GOOS == "windows" {
			p.binary += ".exe"
		}
		if sizes[i], err = build(ctx, p.dir, p.binary); err != nil {
			return nil, nil, err
		}
	}
	return programs, sizes, nil
}

// timeStarts returns the median time in milliseconds until a program is ready.
func timeStarts(ctx context.Context, p program, dir string) (float64, error) {
	var times []float64
	for range starts {
		s, err := start(ctx, p, dir)
		if err != nil {
			return 0, err
		}
		s.stop()
		times = append(times, milliseconds(s.ready))
	}
	return median(times), nil
}

// compare puts both sides under the same load in turns.
func compare(ctx context.Context, o options, via string, c int, pair, other side, progress io.Writer) (Row, error) {
	path := "/api/data?via=" + via
	sides := []side{pair, other}
	// Not measured: the first load makes heaps and pools grow.
	for _, s := range sides {
		if _, err := load(ctx, s.a.addr, path, c, 0, min(o.round, time.Second)); err != nil {
			return Row{}, fmt.Errorf("%s: %w", s.a.name, err)
		}
	}
	var of [2]series
	for n := range o.rounds {
		for i, s := range sides {
			if err := of[i].add(ctx, s, path, c, o); err != nil {
				return Row{}, fmt.Errorf("%s: %w", s.a.name, err)
			}
		}
		fmt.Fprintf(progress, "%s c = %d, round %d of %d: pair %.0f/s, %s %.0f/s: %.2f\n",
			via, c, n+1, o.rounds, of[0].perSecond[n], o.other(), of[1].perSecond[n], of[0].perSecond[n]/of[1].perSecond[n])
	}
	return Row{
		Via: via, C: c, Pair: of[0].medians(), Other: of[1].medians(),
		Ratio:    ratioOf(of[0].perSecond, of[1].perSecond),
		RatioCPU: ratioOf(of[1].cpu, of[0].cpu),
	}, nil
}

// series is the results of one side, by round.
type series struct{ perSecond, p50, p99, cpu, loadCPU []float64 }

func (m *series) add(ctx context.Context, s side, path string, c int, o options) error {
	self := os.Getpid()
	used := func() time.Duration { return cpuTime(s.a.cmd.Process.Pid) + cpuTime(s.b.cmd.Process.Pid) }
	before, selfBefore := used(), cpuTime(self)
	r, err := load(ctx, s.a.addr, path, c, o.warmUp(), o.round)
	if err != nil {
		return err
	}
	calls := float64(max(r.calls, 1))
	m.perSecond = append(m.perSecond, r.perSecond)
	m.p50 = append(m.p50, milliseconds(r.p50))
	m.p99 = append(m.p99, milliseconds(r.p99))
	m.cpu = append(m.cpu, float64((used()-before).Microseconds())/calls)
	m.loadCPU = append(m.loadCPU, float64((cpuTime(self)-selfBefore).Microseconds())/calls)
	return errors.Join(s.a.cut(), s.b.cut())
}

func (m *series) medians() Figures {
	return Figures{PerSecond: median(m.perSecond), P50MS: median(m.p50), P99MS: median(m.p99), CPUMicros: median(m.cpu), LoadCPUMicros: median(m.loadCPU)}
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
