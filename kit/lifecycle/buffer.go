package lifecycle

import (
	"bytes"
	"io"
	"sync"
	"time"

	"example.com/tandem/kit/logtext"
)

// flushDelay is the longest time that a log line stays in the buffer. Buffering
// saves more time than all other work on a log line takes.
const flushDelay = 20 * time.Millisecond

// bufferedWriter collects writes for flushDelay and passes them on as one write.
// It keeps their order. Package telemetry calls Flush after each warning and error,
// so that a process which is killed loses at most flushDelay of lines below warning.
type bufferedWriter struct {
	w          io.Writer
	text       *logtext.Format // turns log lines into text; nil leaves them as JSON
	mu         sync.Mutex      // held during w.Write too, which keeps the order
	buf        bytes.Buffer    // a timer that flushes is set whenever buf is not empty
	unbuffered bool            // set by Unbuffer
}

func (b *bufferedWriter) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.text != nil {
		if line, ok := b.text.Line(bytes.TrimSuffix(p, []byte("\n"))); ok {
			n := len(p)
			_, err := b.write([]byte(line + "\n"))
			return n, err
		}
	}
	return b.write(p)
}

// write does the work of Write; the caller holds b.mu.
func (b *bufferedWriter) write(p []byte) (int, error) {
	if b.unbuffered {
		return b.w.Write(p)
	}
	if b.buf.Len() == 0 {
		time.AfterFunc(flushDelay, b.Flush)
	}
	return b.buf.Write(p)
}

// Flush writes the contents of the buffer.
func (b *bufferedWriter) Flush() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.flush()
}

// Unbuffer flushes, and makes each later Write write at once.
func (b *bufferedWriter) Unbuffer() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.flush()
	b.unbuffered = true
}

// flush does the work of Flush; the caller holds b.mu.
func (b *bufferedWriter) flush() {
	_, _ = b.buf.WriteTo(b.w) // a failure to write the log cannot be logged
	b.buf.Reset()
}
