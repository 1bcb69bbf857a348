package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// useTempDir sets TMPDIR to a directory of the test, and checks that a run leaves no
// files and no processes there.
func useTempDir(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("builds both services and the floor")
	}
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	t.Cleanup(func() {
		left, err := filepath.Glob(filepath.Join(dir, "tandem-bench-*"))
		require.NoError(t, err)
		assert.Empty(t, left)
		for _, name := range runningPrograms(t) {
			assert.NotContains(t, name, dir, "a process is still running")
		}
	})
}

// runningPrograms returns the executables of all processes, and nothing without /proc.
func runningPrograms(t *testing.T) []string {
	t.Helper()
	links, err := filepath.Glob("/proc/[0-9]*/exe")
	require.NoError(t, err)
	var out []string
	for _, l := range links {
		if program, err := os.Readlink(l); err == nil { // some belong to other users, and some have exited
			out = append(out, program)
		}
	}
	return out
}

func TestRun_MeasuresBothTransports(t *testing.T) {
	useTempDir(t)
	file := filepath.Join(t.TempDir(), "figures.json")
	var out bytes.Buffer
	require.NoError(t, run(t.Context(), []string{"-rounds", "1", "-round", "50ms", "-c", "2", "-json", file}, &out, io.Discard))

	text, err := os.ReadFile(file)
	require.NoError(t, err)
	var r Report
	require.NoError(t, json.Unmarshal(text, &r))
	require.Len(t, r.Load, 2)
	for i, via := range []string{"http", "grpc"} {
		row := r.Load[i]
		assert.Equal(t, via, row.Via)
		assert.Equal(t, 2, row.C)
		assert.Positive(t, row.Ratio.Median)
		for _, f := range []Figures{row.Pair, row.Other} {
			assert.Positive(t, f.PerSecond)
			assert.Positive(t, f.P50MS)
			assert.GreaterOrEqual(t, f.P99MS, f.P50MS)
		}
	}
	require.Len(t, r.Processes, 4)
	for i, name := range []string{"service-b", "service-a", "floor-b", "floor-a"} {
		p := r.Processes[i]
		assert.Equal(t, name, p.Name)
		assert.Positive(t, p.RestMiB)
		assert.Positive(t, p.LoadedMiB)
		assert.Positive(t, p.BinaryMB)
		assert.Equal(t, strings.HasPrefix(name, "service"), p.ReadyMS > 0)
	}
	assert.Contains(t, out.String(), "\nverdict: ")
}

// cancelAt is a writer that calls cancel when text is written.
type cancelAt struct {
	text   string
	cancel context.CancelFunc
	once   sync.Once
}

func (c *cancelAt) Write(p []byte) (int, error) {
	if bytes.Contains(p, []byte(c.text)) {
		c.once.Do(c.cancel)
	}
	return len(p), nil
}

// With settings, the pair is compared with the same programs without them.
func TestRun_MeasuresSettings(t *testing.T) {
	useTempDir(t)
	file := filepath.Join(t.TempDir(), "figures.json")
	var out bytes.Buffer
	require.NoError(t, run(t.Context(), []string{"-rounds", "1", "-round", "50ms", "-c", "32", "-env", "LOG_LEVEL=warn", "-json", file}, &out, io.Discard))
	text, err := os.ReadFile(file)
	require.NoError(t, err)
	var r Report
	require.NoError(t, json.Unmarshal(text, &r))
	require.Len(t, r.Processes, 4)
	for i, name := range []string{"service-b", "service-a", "base-b", "base-a"} {
		assert.Equal(t, name, r.Processes[i].Name)
		assert.InDelta(t, r.Processes[i%2].BinaryMB, r.Processes[i].BinaryMB, 0)
	}
	assert.Contains(t, out.String(), "and the pair of the same checkout without LOG_LEVEL=warn.\n")
	assert.NotContains(t, out.String(), "floor")
}

// The settings of -env are the pair's: with an invalid one, it does not start.
func TestRun_PassesSettings(t *testing.T) {
	useTempDir(t)
	err := run(t.Context(), []string{"-rounds", "1", "-round", "50ms", "-c", "2", "-env", "OTEL_EXPORTER_OTLP_ENDPOINT=nowhere"}, io.Discard, io.Discard)
	assert.ErrorContains(t, err, `OTEL_EXPORTER_OTLP_ENDPOINT="nowhere": want a URL`)
}

func TestRun_IsInterrupted(t *testing.T) {
	useTempDir(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	err := run(ctx, []string{"-rounds", "1000", "-round", "50ms", "-c", "2"}, io.Discard, &cancelAt{text: "round 2 of", cancel: cancel})
	assert.ErrorIs(t, err, context.Canceled)
}

func TestRun_RejectsInvalidFlags(t *testing.T) {
	for _, c := range []struct{ args, want string }{
		{args: "-c 0", want: "want numbers from 1 to 512"},
		{args: "-c many", want: "want numbers from 1 to 512"},
		{args: "-via smoke", want: "want http, grpc or both"},
		{args: "-rounds 0", want: "want 1 or more"},
		{args: "-round 0s", want: "want more than 0"},
		{args: "-check -c 1", want: "-check needs c = 32"},
		{args: "-check -env LOG_LEVEL=warn", want: "-check compares with the floor, which -env and -base do not"},
		{args: "-check -base ..", want: "-check compares with the floor, which -env and -base do not"},
		{args: "-env LOG_LEVEL", want: "want KEY=VALUE"},
		{args: "now", want: `unknown argument "now"`},
		{args: "-fast", want: "flag provided but not defined"},
	} {
		t.Run(c.args, func(t *testing.T) {
			err := run(t.Context(), strings.Fields(c.args), io.Discard, io.Discard)
			var wrong *usageError
			require.ErrorAs(t, err, &wrong)
			assert.ErrorContains(t, err, c.want)
		})
	}
}

func TestReport_Verdict(t *testing.T) {
	row := func(c int, ratio float64) Row { return Row{Via: "http", C: c, Ratio: Ratio{Median: ratio}} }
	process := Process{Name: "service-a", ReadyMS: 12, RestMiB: 20}
	for _, c := range []struct {
		name string
		r    Report // compared with the floor
		good bool
		want string
	}{
		{
			name: "all targets are reached",
			r:    Report{Load: []Row{row(1, 0.2), row(32, 0.8)}, Processes: []Process{process}},
			good: true,
			want: "verdict: good: 0.80 of the floor over http at c = 32 (want 0.75); good: ready in 12 ms (want 100); good: 20.0 MiB at rest (want 30)",
		},
		{
			name: "too little throughput",
			r:    Report{Load: []Row{row(32, 0.7)}, Processes: []Process{process}},
			want: "verdict: MISSED: 0.70 of the floor over http at c = 32 (want 0.75); good: ready in 12 ms (want 100); good: 20.0 MiB at rest (want 30)",
		},
		{
			name: "ready too late, with too much memory",
			r:    Report{Processes: []Process{{ReadyMS: 101, RestMiB: 31}, process, {RestMiB: 99}}},
			good: true,
			want: "verdict: MISSED: ready in 101 ms (want 100); MISSED: 31.0 MiB at rest (want 30)",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.r.Other = floor
			assert.Equal(t, c.good, c.r.fastEnough())
			assert.Equal(t, c.want, c.r.verdict())
		})
	}
}
