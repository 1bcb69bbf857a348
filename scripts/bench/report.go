package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"
)

// The targets of the project.
const (
	verdictC  = 32   // calls in flight
	wantRatio = 0.75 // minimum share of the floor's throughput
	wantReady = 100  // maximum milliseconds from exec
	wantRest  = 30   // maximum resident MiB before any load
	quiet     = 0.10 // share of CPU time of other processes above which the report warns
)

// Report is the result of a run.
type Report struct {
	When     time.Time `json:"when"`
	Go       string    `json:"go"`
	Platform string    `json:"platform"`
	CPUs     int       `json:"cpus"`
	// Other is what the pair is compared with: the floor, or the pair of Base without Env.
	Other        string   `json:"other"`
	Env          []string `json:"env,omitempty"`
	Base         string   `json:"base,omitempty"` // a checkout; empty for the pair's own
	Rounds       int      `json:"rounds"`
	RoundSeconds float64  `json:"roundSeconds"`
	// OthersCPU is the share of the machine's CPU time that other processes used
	// during the run; 0 if it is unknown.
	OthersCPU float64   `json:"othersCPU"`
	Load      []Row     `json:"load"`
	Processes []Process `json:"processes"`
}

// Row is the result for one transport and one number of calls in flight.
type Row struct {
	Via  string  `json:"via"`
	C    int     `json:"c"`
	Pair Figures `json:"pair"`
	// Other is what the pair is compared with (see Report).
	Other Figures `json:"other"`
	// Ratio is the pair's throughput divided by the other's.
	Ratio Ratio `json:"ratio"`
	// RatioCPU is the other's CPU time per call divided by the pair's. Unlike Ratio, it
	// does not include the load generator and other processes.
	RatioCPU Ratio `json:"ratioCPU"`
}

// Figures are medians over the rounds.
type Figures struct {
	PerSecond float64 `json:"perSecond"`
	P50MS     float64 `json:"p50Ms"`
	P99MS     float64 `json:"p99Ms"`
	// CPUMicros is the CPU time of a and b per call; 0 if it is unknown.
	CPUMicros float64 `json:"cpuMicros"`
	// LoadCPUMicros is the CPU time of the load generator per call.
	LoadCPUMicros float64 `json:"loadCPUMicros"`
}

// Process is the result for one of the four programs.
type Process struct {
	Name string `json:"name"`
	// ReadyMS is the time from exec to the first 200 of /readyz.
	ReadyMS   float64 `json:"readyMs,omitempty"`
	RestMiB   float64 `json:"restMiB"`
	LoadedMiB float64 `json:"loadedMiB"`
	BinaryMB  float64 `json:"binaryMB"`
}

func (r *Report) writeJSON(path string) error {
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(text, '\n'), 0o644) //nolint:gosec // a report is no secret
}

func (r *Report) print(w io.Writer) {
	what := "the floor: raw net/http and grpc-go"
	if r.Other == base {
		what = "the pair of " + cmp.Or(r.Base, "the same checkout")
		if len(r.Env) > 0 {
			what += " without " + strings.Join(r.Env, " ")
		}
	}
	fmt.Fprintf(w, "\nThe pair as released, with the access log on (to a file), and %s.\n"+
		"Medians of %d rounds of %gs in turns; %s, %s, %d CPUs.\n\n", what, r.Rounds, r.RoundSeconds, r.Go, r.Platform, r.CPUs)
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	row := func(cells ...string) { fmt.Fprintln(table, strings.Join(cells, "\t")+"\t") }
	row("", "", "calls/s", "", "", "", "p50 ms", "", "p99 ms", "", "CPU µs/call", "", "", "")
	row("via", "c", "pair", r.Other, "ratio", "min–max", "pair", r.Other, "pair", r.Other, "pair", r.Other, r.Other+"/pair", "min–max")
	for _, l := range r.Load {
		row(l.Via, fmt.Sprint(l.C),
			fmt.Sprintf("%.0f", l.Pair.PerSecond), fmt.Sprintf("%.0f", l.Other.PerSecond),
			fmt.Sprintf("%.2f", l.Ratio.Median), fmt.Sprintf("%.2f–%.2f", l.Ratio.Min, l.Ratio.Max),
			fmt.Sprintf("%.2f", l.Pair.P50MS), fmt.Sprintf("%.2f", l.Other.P50MS),
			fmt.Sprintf("%.2f", l.Pair.P99MS), fmt.Sprintf("%.2f", l.Other.P99MS),
			known("%.0f", l.Pair.CPUMicros), known("%.0f", l.Other.CPUMicros),
			known("%.2f", l.RatioCPU.Median), known("%.2f", l.RatioCPU.Min)+"–"+known("%.2f", l.RatioCPU.Max))
	}
	_ = table.Flush() // without a terminal, the error cannot be shown either
	fmt.Fprintln(w)
	table = tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	row("process", "ready in ms", "MiB at rest", "after load", "binary MB")
	for _, p := range r.Processes {
		row(p.Name, known("%.0f", p.ReadyMS), fmt.Sprintf("%.1f", p.RestMiB), fmt.Sprintf("%.1f", p.LoadedMiB), fmt.Sprintf("%.1f", p.BinaryMB))
	}
	_ = table.Flush()
	if r.OthersCPU > quiet {
		fmt.Fprintf(w, "\nOther processes used %.0f %% of the CPU time: differences smaller than min–max mean nothing.\n", 100*r.OthersCPU)
	}
	fmt.Fprintf(w, "\n%s\n", r.verdict())
}

func known(format string, figure float64) string {
	if figure == 0 {
		return "–"
	}
	return fmt.Sprintf(format, figure)
}

// verdict compares the figures with the targets.
func (r *Report) verdict() string {
	var results []string
	add := func(what string, good bool) {
		results = append(results, map[bool]string{true: "good: ", false: "MISSED: "}[good]+what)
	}
	for _, l := range r.Load {
		if l.C == verdictC && r.Other == floor {
			add(fmt.Sprintf("%.2f of the floor over %s at c = %d (want %.2f)", l.Ratio.Median, l.Via, l.C, wantRatio), l.Ratio.Median >= wantRatio)
		}
	}
	var ready, memory float64
	for _, p := range r.Processes {
		if p.ReadyMS > 0 { // the pair's
			ready, memory = max(ready, p.ReadyMS), max(memory, p.RestMiB)
		}
	}
	add(fmt.Sprintf("ready in %.0f ms (want %d)", ready, wantReady), ready <= wantReady)
	add(fmt.Sprintf("%.1f MiB at rest (want %d)", memory, wantRest), memory <= wantRest)
	return "verdict: " + strings.Join(results, "; ")
}

// fastEnough reports whether the throughputs of verdictC reach wantRatio.
func (r *Report) fastEnough() bool {
	for _, l := range r.Load {
		if l.C == verdictC && l.Ratio.Median < wantRatio {
			return false
		}
	}
	return true
}
