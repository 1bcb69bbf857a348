package lifecycle

import (
	"bytes"
	"io"
	"sync"
	"time"
)

// linesEvery is how long a log line may wait for others to be written with.
// Writing each line by itself takes more time than everything else that a log
// line costs.
const linesEvery = 20 * time.Millisecond

// lines is a writer that gathers what is written for linesEvery and writes it
// at once. Package telemetry calls Flush after warnings and errors, so that a
// process which dies loses at most linesEvery of lines below them.
type lines struct {
	w  io.Writer
	mu sync.Mutex // held while writing, so that lines stay in order
	// buf is written by a timer that is set whenever buf is not empty.
	buf bytes.Buffer
	// unbuffered is set once lines are no longer gathered.
	unbuffered bool
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.unbuffered {
		return l.w.Write(p)
	}
	if l.buf.Len() == 0 {
		time.AfterFunc(linesEvery, l.Flush)
	}
	return l.buf.Write(p)
}

// Flush writes what has been gathered.
func (l *lines) Flush() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.flush()
}

// Unbuffer writes what has been gathered and, from then on, each line at once.
func (l *lines) Unbuffer() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.flush()
	l.unbuffered = true
}

func (l *lines) flush() {
	_, _ = l.buf.WriteTo(l.w) // an error in writing the log cannot be logged
	l.buf.Reset()
}
