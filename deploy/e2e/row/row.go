// Package row defines the rows of docs/reliability.md. Each TestReliability test
// of deploy/e2e writes its row to a file; deploy/e2e/chaos makes the table of the
// files.
package row

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
)

// Row is what one test did, what callers should see, and what they saw.
type Row struct {
	Number   int    `json:"number"`
	Event    string `json:"event"`    // what happens during the test
	Expected string `json:"expected"` // what callers should see
	Test     string `json:"test"`     // name of the test
	// Commit is the version that was measured. A table may hold rows of several runs.
	Commit string `json:"commit,omitempty"`
	// Full is false for the short form, which runs for less time and fewer times.
	Full bool `json:"full"`
	// ShortAsserts says what the short form asserts instead, where that is less than Expected.
	ShortAsserts string    `json:"shortAsserts,omitempty"`
	Held         bool      `json:"held"` // every assertion passed
	Seconds      float64   `json:"seconds"`
	Figures      []Figures `json:"figures"`
	Facts        []string  `json:"facts"` // further observations, in words
	// Limits says why callers see more than nothing, and what would improve it.
	Limits string `json:"limits,omitempty"`
}

// Figures describes the calls over one transport in one period.
type Figures struct {
	Via string `json:"via"`
	// During names the period, where a row has several.
	During             string         `json:"during,omitempty"`
	Calls              int            `json:"calls"`
	Failed             map[string]int `json:"failed"` // by class
	SucceededPerSecond float64        `json:"succeededPerSecond"`
	InFlight           float64        `json:"inFlight"` // mean number of calls in flight
	// P50, P99 and Max are of all calls, failed ones included, in milliseconds.
	P50 float64 `json:"p50Ms"`
	P99 float64 `json:"p99Ms"`
	Max float64 `json:"maxMs"`
	// Gap is the longest time without a successful call, in milliseconds.
	Gap float64 `json:"longestGapMs"`
}

// TotalFailed returns the number of failed calls of all classes.
func (f Figures) TotalFailed() int {
	total := 0
	for _, n := range f.Failed {
		total += n
	}
	return total
}

func (f Figures) String() string {
	return fmt.Sprintf("%d calls, failed %v, %.0f succeeded a second, %.0f in flight, p50 %.1f ms, p99 %.1f ms, max %.0f ms, longest gap %.0f ms",
		f.Calls, f.Failed, f.SucceededPerSecond, f.InFlight, f.P50, f.P99, f.Max, f.Gap)
}

// Write writes the row into a file of dir, named for its number.
func (r Row) Write(dir string) error {
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, fmt.Sprintf("%02d.json", r.Number)), append(text, '\n'), 0o600)
}

// Read reads a file of Write. It rejects unknown fields: a file of another
// version would otherwise lose them without notice.
func Read(file string) (Row, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return Row{}, err
	}
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	var r Row
	if err := dec.Decode(&r); err != nil {
		return Row{}, fmt.Errorf("%s: %w", file, err)
	}
	return r, nil
}
