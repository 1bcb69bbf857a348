package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
)

// Row is what a test of deploy/e2e leaves (rows_test.go there).
type Row struct {
	Number  int       `json:"number"`
	What    string    `json:"what"`
	Promise string    `json:"promise"`
	Test    string    `json:"test"`
	Commit  string    `json:"commit,omitempty"`
	Full    bool      `json:"full"`
	Held    bool      `json:"held"`
	Seconds float64   `json:"seconds"`
	Figures []Figures `json:"figures"`
	Facts   []string  `json:"facts"`
	Bound   string    `json:"bound,omitempty"`
}

// Figures of a transport's calls; times in milliseconds.
type Figures struct {
	Via       string         `json:"via"`
	During    string         `json:"during,omitempty"`
	Calls     int            `json:"calls"`
	Failed    map[string]int `json:"failed"`
	PerSecond float64        `json:"answeredPerSecond"`
	InFlight  float64        `json:"inFlight"`
	P50       float64        `json:"p50Ms"`
	P99       float64        `json:"p99Ms"`
	Max       float64        `json:"maxMs"`
	Gap       float64        `json:"longestGapMs"`
}

// Report is a whole run.
type Report struct {
	Commit  string `json:"commit"`
	Machine string `json:"machine"`
	Cluster string `json:"cluster"`
	Rows    []Row  `json:"rows"`
}

// collect reads the rows, and says where they were measured.
func collect(ctx context.Context, dir string) (Report, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err != nil {
		return Report{}, err
	}
	if len(files) == 0 {
		return Report{}, errors.New("no row was run: is there a cluster? make kind-up deploy makes one")
	}
	r := Report{Commit: commit(ctx), Machine: machine(), Cluster: cluster(ctx)}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return r, err
		}
		var row Row
		dec := json.NewDecoder(bytes.NewReader(text))
		dec.DisallowUnknownFields() // nothing that a test says is left out of the table in silence
		if err := dec.Decode(&row); err != nil {
			return r, fmt.Errorf("%s: %w", file, err)
		}
		r.Rows = append(r.Rows, row)
	}
	slices.SortFunc(r.Rows, func(a, b Row) int { return a.Number - b.Number })
	return r, nil
}

// commit is what git calls the state of this folder.
func commit(ctx context.Context) string {
	return say(ctx, "git", "describe", "--tags", "--always", "--dirty")
}

// say is what a program prints; what it cannot say is left out of the table.
func say(ctx context.Context, name string, args ...string) string {
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
		return say(ctx, "kubectl", args...)
	}
	nodes := strings.Fields(kube("get", "nodes", "--output", "jsonpath={.items[*].metadata.name}"))
	version := kube("get", "nodes", "--output", "jsonpath={.items[0].status.nodeInfo.kubeletVersion}")
	return fmt.Sprintf("%d nodes of Kubernetes %s, all on that machine", len(nodes), version)
}

// write puts the table into folder and, if one is named, into a document.
func (r Report) write(folder, doc string) error {
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
	updated, err := replaced(string(old), table)
	if err != nil {
		return fmt.Errorf("%s: %w", doc, err)
	}
	return os.WriteFile(doc, []byte(updated), 0o644) //nolint:gosec // a document
}

// A document holds the table between these.
const (
	begin = "<!-- make chaos writes from here … -->\n"
	end   = "<!-- … to here -->\n"
)

// anchor is where the table explains a row.
var anchor = regexp.MustCompile(`<a id="row-\d+"></a>`)

// replaced is the document with another table. It refuses a table that lacks a
// row of the one before: a run of some rows in a fresh folder has only those.
func replaced(doc, table string) (string, error) {
	before, rest, ok := strings.Cut(doc, begin)
	old, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		return "", fmt.Errorf("want the lines %q and %q, for the table to go between", strings.TrimSpace(begin), strings.TrimSpace(end))
	}
	for _, row := range anchor.FindAllString(old, -1) {
		if !strings.Contains(table, row) {
			return "", fmt.Errorf("the new table lacks the row %s of the old one: run that row too, or all rows", row)
		}
	}
	return before + begin + "\n" + table + "\n" + end + after, nil
}

func (r Report) markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "Measured at %s on %s; %s. %sIn flight is the mean number of calls in flight. Times are in milliseconds, and of every call, those that failed too; the gap is the longest time without a response.\n\n",
		r.Commit, r.Machine, r.Cluster, r.shortRows())
	b.WriteString("| | what happens | | calls | in flight | failed | p50 | p99 | longest gap | |\n|--:|---|---|--:|--:|---|--:|--:|--:|---|\n")
	for _, row := range r.Rows {
		verdict := "held"
		if !row.Held {
			verdict = "**not held**"
		}
		number, what := fmt.Sprintf("[%d](#row-%d)", row.Number, row.Number), row.What
		if len(row.Figures) == 0 {
			fmt.Fprintf(&b, "| %s | %s | | | | | | | | %s |\n", number, what, verdict)
		}
		for _, f := range row.Figures {
			fmt.Fprintf(&b, "| %s | %s | %s | %s | %.0f | %s | %.1f | %.1f | %.0f | %s |\n",
				number, what, strings.TrimSuffix(f.Via+", "+f.During, ", "), thousands(f.Calls), f.InFlight, f.failed(), f.P50, f.P99, f.Gap, verdict)
			number, what, verdict = "", "", "" // once a row
		}
	}
	for _, row := range r.Rows {
		how := ""
		if !row.Full {
			how += ", short form"
		}
		if row.Commit != "" && row.Commit != r.Commit {
			how += ", at " + row.Commit
		}
		fmt.Fprintf(&b, "\n<a id=\"row-%d\"></a>**%d. %s.** Callers are to see: %s. (`%s`, %.0f s%s)\n\n",
			row.Number, row.Number, capital(row.What), row.Promise, row.Test, row.Seconds, how)
		for _, fact := range row.Facts {
			fmt.Fprintf(&b, "- %s\n", fact)
		}
		if row.Bound != "" {
			fmt.Fprintf(&b, "\nThe bound: %s\n", row.Bound)
		}
	}
	return b.String()
}

// shortRows is a sentence that names the rows of the short form, if there are any.
func (r Report) shortRows() string {
	var numbers []string
	for _, row := range r.Rows {
		if !row.Full {
			numbers = append(numbers, strconv.Itoa(row.Number))
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

// failed is how many failed, and how.
func (f Figures) failed() string {
	if len(f.Failed) == 0 {
		return "0"
	}
	total, classes := 0, []string{}
	for class, n := range f.Failed {
		total += n
		classes = append(classes, class)
	}
	slices.Sort(classes)
	return fmt.Sprintf("%s: %s", thousands(total), strings.Join(classes, ", "))
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
