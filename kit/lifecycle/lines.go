package lifecycle

import (
	"bytes"
	"io"
	"sync"
	"time"
)

// linesEvery is how long a log line may wait for others to be written with.
// To write each by itself takes more time than all else that makes a line.
const linesEvery = 20 * time.Millisecond

// lines gathers what is written for a moment, and writes it at once.
type lines struct {
	w  io.Writer
	mu sync.Mutex // held while writing, so that lines stay in order
	// buf is what waits, for a timer that is set if there is something.
	buf bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.buf.Len() == 0 {
		time.AfterFunc(linesEvery, l.flush)
	}
	return l.buf.Write(p)
}

func (l *lines) flush() {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, _ = l.buf.WriteTo(l.w) // where logs cannot be written there is no one to tell
	l.buf.Reset()
}
