package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// row is one line of docs/reliability.md: what happened, what callers were to
// see, and what they saw. make chaos collects them; each is a test named
// TestWhen….
type row struct {
	Number int    `json:"number"`
	What   string `json:"what"`
	// Promise is what callers are to see.
	Promise string `json:"promise"`
	Test    string `json:"test"`
	// Commit is what make chaos measures; rows of several runs make one table.
	Commit string `json:"commit,omitempty"`
	// Full rows ran as long and as often as the promise asks; the short form is
	// for every change.
	Full    bool      `json:"full"`
	Held    bool      `json:"held"`
	Seconds float64   `json:"seconds"`
	Figures []figures `json:"figures"`
	// Facts are what else was seen, in words.
	Facts []string `json:"facts"`
	// Bound says, where there can be no zero, why, and what would lower it.
	Bound string `json:"bound,omitempty"`

	t *testing.T
}

// row begins a row. Call it first: what is put back after the test belongs to it.
func newRow(t *testing.T, number int, what, promise string) *row {
	r := &row{Number: number, What: what, Promise: promise, Test: t.Name(), Commit: os.Getenv("CHAOS_COMMIT"), Full: os.Getenv("CHAOS") == "full", t: t}
	start := time.Now()
	t.Cleanup(func() {
		r.Held = !t.Failed()
		r.Seconds = time.Since(start).Round(time.Second).Seconds()
		dir := os.Getenv("CHAOS_ROWS")
		if dir == "" {
			return
		}
		text, err := json.MarshalIndent(r, "", "  ")
		require.NoError(t, err)
		assert.NoError(t, os.WriteFile(filepath.Join(dir, fmt.Sprintf("%02d.json", r.Number)), append(text, '\n'), 0o600))
	})
	return r
}

// either is how often or how long, by the row's form.
func either[T any](r *row, short, full T) T {
	if r.Full {
		return full
	}
	return short
}

// fact notes what was seen.
func (r *row) fact(format string, args ...any) {
	r.t.Helper()
	fact := fmt.Sprintf(format, args...)
	r.t.Log(fact)
	r.Facts = append(r.Facts, fact)
}

// measured notes figures.
func (r *row) measured(g figures) figures {
	r.t.Helper()
	r.t.Logf("%s %s: %s", g.Via, g.During, g)
	r.Figures = append(r.Figures, g)
	return g
}

// wantNoneLost ends the traffic, notes its figures, and wants every call
// answered.
func (r *row) wantNoneLost(f *traffic) {
	r.t.Helper()
	end := f.now()
	f.stop()
	for _, via := range f.offer.transports {
		g := r.measured(f.figures(via, "", 0, end))
		assert.Empty(r.t, g.Failed, "%s; for example %v. The machine stood still for up to %s: "+
			"if that is a second or more, it is too busy to tell a call that is late from one that is lost", via, f.why(), f.stalled())
		require.Positive(r.t, g.Calls, via)
	}
}

// wantNoneHung wants every call to have ended within service-a's deadline for
// it, give or take what the machine itself takes.
func (r *row) wantNoneHung(f *traffic, deadline time.Duration) {
	r.t.Helper()
	for _, via := range f.offer.transports {
		g := f.figures(via, "", 0, f.now())
		assert.LessOrEqual(r.t, g.Max, ms(deadline+500*time.Millisecond+2*f.stalled()), "%s: no call may hang beyond its deadline", via)
	}
}

// events calls take for each of a stream of server-sent events.
func events(r io.Reader, take func(kind, data string)) error {
	lines := bufio.NewScanner(r)
	kind, data := "", ""
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), ": ")
		switch name {
		case "event":
			kind = value
		case "data":
			data = value
		case "":
			if kind != "" {
				take(kind, data)
			}
			kind, data = "", ""
		}
	}
	return lines.Err()
}
