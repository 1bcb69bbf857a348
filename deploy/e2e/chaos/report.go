package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"example.com/tandem/deploy/e2e/row"
)

// report is the table and where it was measured.
type report struct {
	Commit  string    `json:"commit"`
	Machine string    `json:"machine"`
	Cluster string    `json:"cluster"`
	Rows    []row.Row `json:"rows"`
}

// collect reads the rows of a folder.
func collect(ctx context.Context, dir string) (report, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err != nil {
		return report{}, err
	}
	if len(files) == 0 {
		return report{}, errors.New("no row was run: is there a cluster? create one with make kind-up deploy")
	}
	r := report{Commit: commit(ctx), Machine: machine(), Cluster: cluster(ctx)}
	for _, file := range files {
		measured, err := row.Read(file)
		if err != nil {
			return r, err
		}
		r.Rows = append(r.Rows, measured)
	}
	slices.SortFunc(r.Rows, func(a, b row.Row) int { return a.Number - b.Number })
	return r, nil
}

// commit returns the version of the working tree.
func commit(ctx context.Context) string {
	return output(ctx, "git", "describe", "--tags", "--always", "--dirty")
}

// output returns what a program prints, or "" if it fails: the table then lacks that fact.
func output(ctx context.Context, name string, args ...string) string {
	out, _ := exec.CommandContext(ctx, name, args...).Output()
	return strings.TrimSpace(string(out))
}

func machine() string {
	words := []string{fmt.Sprintf("%d CPUs", runtime.NumCPU())}
	if text, err := os.ReadFile("/proc/meminfo"); err == nil {
		lines := bufio.NewScanner(bytes.NewReader(text))
		for lines.Scan() {
			if fields := strings.Fields(lines.Text()); len(fields) > 1 && fields[0] == "MemTotal:" {
				if kib, err := strconv.Atoi(fields[1]); err == nil {
					words = append(words, fmt.Sprintf("%.0f GiB of memory", float64(kib)/(1<<20)))
				}
			}
		}
	}
	return strings.Join(append(words, runtime.GOOS+"/"+runtime.GOARCH, runtime.Version()), ", ")
}

func cluster(ctx context.Context) string {
	kube := func(args ...string) string {
		if name := os.Getenv("TANDEM_E2E_CONTEXT"); name != "" {
			args = append([]string{"--context", name}, args...)
		}
		return output(ctx, "kubectl", args...)
	}
	nodes := strings.Fields(kube("get", "nodes", "--output", "jsonpath={.items[*].metadata.name}"))
	version := kube("get", "nodes", "--output", "jsonpath={.items[0].status.nodeInfo.kubeletVersion}")
	return fmt.Sprintf("%d nodes of Kubernetes %s, all on that machine", len(nodes), version)
}

// write writes the table into folder and, unless doc is "", into that document.
func (r report) write(folder, doc string) error {
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	table := r.markdown()
	err = errors.Join(
		os.WriteFile(filepath.Join(folder, "chaos.json"), append(text, '\n'), 0o600),
		os.WriteFile(filepath.Join(folder, "chaos.md"), []byte(table), 0o600),
	)
	if err != nil || doc == "" {
		return err
	}
	old, err := os.ReadFile(doc)
	if err != nil {
		return err
	}
	updated, err := replaceTable(string(old), table)
	if err != nil {
		return fmt.Errorf("%s: %w", doc, err)
	}
	return os.WriteFile(doc, []byte(updated), 0o644) //nolint:gosec // a document
}

// The lines of a document between which the table is.
const (
	begin = "<!-- begin of the table, written by make chaos -->\n"
	end   = "<!-- end of the table -->\n"
)

// anchor marks the details of a row.
var anchor = regexp.MustCompile(`<a id="row-\d+"></a>`)

// replaceTable returns doc with another table. It fails if the new table lacks a row
// of the old one, as after a run of some rows into an empty folder.
func replaceTable(doc, table string) (string, error) {
	before, rest, ok := strings.Cut(doc, begin)
	old, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		return "", fmt.Errorf("want the lines %q and %q around the table", strings.TrimSpace(begin), strings.TrimSpace(end))
	}
	for _, detail := range anchor.FindAllString(old, -1) {
		if !strings.Contains(table, detail) {
			return "", fmt.Errorf("the new table lacks the row %s of the old one: run that row too, or all rows", detail)
		}
	}
	return before + begin + "\n" + table + "\n" + end + after, nil
}

func (r report) markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "Measured at %s on %s; %s. %sIn flight is the mean number of calls in flight. Times are in milliseconds and include failed calls. The gap is the longest time without a successful call.\n\n",
		r.Commit, r.Machine, r.Cluster, r.shortRows())
	b.WriteString("| | event | | calls | in flight | failed | p50 | p99 | longest gap | |\n|--:|---|---|--:|--:|---|--:|--:|--:|---|\n")
	for _, entry := range r.Rows {
		tableLines(&b, entry)
	}
	for _, entry := range r.Rows {
		r.details(&b, entry)
	}
	return b.String()
}

// tableLines writes one line for each of the row's figures.
func tableLines(b *strings.Builder, entry row.Row) {
	verdict := "held"
	switch {
	case !entry.Held:
		verdict = "**not held**"
	case lessAsserted(entry):
		verdict = "held in the short form, which asserts less"
	}
	number, event := fmt.Sprintf("[%d](#row-%d)", entry.Number, entry.Number), entry.Event
	if len(entry.Figures) == 0 {
		fmt.Fprintf(b, "| %s | %s | | | | | | | | %s |\n", number, event, verdict)
	}
	for _, f := range entry.Figures {
		fmt.Fprintf(b, "| %s | %s | %s | %s | %.0f | %s | %.1f | %.1f | %.0f | %s |\n",
			number, event, strings.TrimSuffix(f.Via+", "+f.During, ", "), thousands(f.Calls), f.InFlight, failed(f), f.P50, f.P99, f.Gap, verdict)
		number, event, verdict = "", "", "" // only on the first line
	}
}

// details writes what the table has no column for.
func (r report) details(b *strings.Builder, entry row.Row) {
	how := ""
	if !entry.Full {
		how += ", short form"
	}
	if entry.Commit != "" && entry.Commit != r.Commit {
		how += ", at " + entry.Commit
	}
	asserted := ""
	if lessAsserted(entry) {
		asserted = " Asserted in the short form, whose measurements are too short to be precise: " + entry.ShortAsserts + "."
	}
	fmt.Fprintf(b, "\n<a id=\"row-%d\"></a>**%d. %s.** Expected: %s.%s (`%s`, %.0f s%s)\n",
		entry.Number, entry.Number, capital(entry.Event), entry.Expected, asserted, entry.Test, entry.Seconds, how)
	for i, fact := range entry.Facts {
		if i == 0 {
			b.WriteString("\n")
		}
		fmt.Fprintf(b, "- %s\n", fact)
	}
	if entry.Limits != "" {
		fmt.Fprintf(b, "\nLimits: %s\n", entry.Limits)
	}
}

// lessAsserted reports whether the form that was run asserts less than is expected.
func lessAsserted(entry row.Row) bool { return !entry.Full && entry.ShortAsserts != "" }

// shortRows returns a sentence that names the rows in short form, or "".
func (r report) shortRows() string {
	var numbers []string
	for _, entry := range r.Rows {
		if !entry.Full {
			numbers = append(numbers, strconv.Itoa(entry.Number))
		}
	}
	switch len(numbers) {
	case 0:
		return ""
	case len(r.Rows):
		return "All rows were run in their short form. "
	default:
		return "Rows in short form: " + strings.Join(numbers, ", ") + ". "
	}
}

// failed returns the number of failed calls and their classes.
func failed(f row.Figures) string {
	if len(f.Failed) == 0 {
		return "0"
	}
	return fmt.Sprintf("%s: %s", thousands(f.TotalFailed()), strings.Join(slices.Sorted(maps.Keys(f.Failed)), ", "))
}

func thousands(n int) string {
	text := strconv.Itoa(n)
	for i := len(text) - 3; i > 0; i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	return text
}

func capital(s string) string {
	if s == "" {
		return s
	}
	return strings.ToUpper(s[:1]) + s[1:]
}
