package e2e

import (
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"example.com/tandem/deploy/e2e/load"
	"example.com/tandem/deploy/e2e/row"
)

// recorder records the row of a TestReliability test.
type recorder struct {
	row.Row
	t *testing.T
}

// newRow begins a row, which is written at the end of the test if CHAOS_ROWS names a
// folder. Call it before anything is registered with restore, so that a failure to
// restore counts for the row.
func newRow(t *testing.T, number int, event, expected string) *recorder {
	r := &recorder{t: t, Row: row.Row{
		Number: number, Event: event, Expected: expected, Test: t.Name(), Commit: os.Getenv("CHAOS_COMMIT"), Full: os.Getenv("CHAOS") == "full",
	}}
	start := time.Now()
	t.Cleanup(func() {
		r.Held = !t.Failed()
		r.Seconds = time.Since(start).Round(time.Second).Seconds()
		if dir := os.Getenv("CHAOS_ROWS"); dir != "" {
			assert.NoError(t, r.Write(dir))
		}
	})
	return r
}

// byForm returns short or full, depending on the form in which the row runs.
func byForm[T any](r *recorder, short, full T) T {
	if r.Full {
		return full
	}
	return short
}

// addFact logs an observation and adds it to the row.
func (r *recorder) addFact(format string, args ...any) {
	r.t.Helper()
	fact := fmt.Sprintf(format, args...)
	r.t.Log(fact)
	r.Facts = append(r.Facts, fact)
}

// addFigures logs figures and adds them to the row.
func (r *recorder) addFigures(f row.Figures) row.Figures {
	r.t.Helper()
	r.t.Logf("%s %s: %s", f.Via, f.During, f)
	r.Figures = append(r.Figures, f)
	return f
}

// requireNoFailedCall stops the load, adds its figures and checks that all calls
// succeeded.
func (r *recorder) requireNoFailedCall(g *load.Generator) {
	r.t.Helper()
	end := g.Elapsed()
	g.Stop()
	for _, via := range g.Spec().Transports {
		f := r.addFigures(g.Figures(via, "", 0, end))
		assert.Empty(r.t, f.Failed, failureMessage(g, via))
		require.Positive(r.t, f.Calls, via)
	}
}

// requireWithinDeadline checks that every call ended within the deadline that
// service-a gives it, plus what the machine itself may add.
func (r *recorder) requireWithinDeadline(g *load.Generator, deadline time.Duration) {
	r.t.Helper()
	for _, via := range g.Spec().Transports {
		f := g.Figures(via, "", 0, g.Elapsed())
		assert.LessOrEqual(r.t, f.Max, load.Milliseconds(withSlack(g, deadline)), "%s: a call took longer than its deadline", via)
	}
}

// withSlack returns the longest time that a call with this deadline may take on this
// machine.
func withSlack(g *load.Generator, deadline time.Duration) time.Duration {
	return deadline + 500*time.Millisecond + 2*g.Stalled()
}
