package lifecycle

import (
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// countingWriter keeps what is written and counts the writes.
type countingWriter struct {
	mu     sync.Mutex
	text   strings.Builder
	writes int
}

func (c *countingWriter) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.writes++
	return c.text.Write(p)
}

func (c *countingWriter) get() (string, int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.text.String(), c.writes
}

// Without a Flush, lines are written together, soon, and in the order in which
// they came.
func TestBufferedWriter_GathersInOrder(t *testing.T) {
	var w countingWriter
	b := &bufferedWriter{w: &w}
	want := strings.Repeat("one\ntwo\n", 500)
	for range 500 {
		_, err := io.WriteString(b, "one\n")
		require.NoError(t, err)
		_, err = io.WriteString(b, "two\n")
		require.NoError(t, err)
	}
	require.Eventually(t, func() bool { text, _ := w.get(); return text == want }, 10*time.Second, time.Millisecond, "lines were not written without Flush")
	_, writes := w.get()
	assert.Less(t, writes, 500, "1000 lines took too many writes")

	_, err := io.WriteString(b, "the last\n")
	require.NoError(t, err)
	b.Flush()
	text, _ := w.get()
	assert.Equal(t, want+"the last\n", text)
}

// Unbuffer writes the buffered lines, and later lines are written at once.
func TestBufferedWriter_UnbufferWritesAtOnce(t *testing.T) {
	var w countingWriter
	b := &bufferedWriter{w: &w}
	_, err := io.WriteString(b, "before\n")
	require.NoError(t, err)
	b.Unbuffer()
	text, _ := w.get()
	assert.Equal(t, "before\n", text)
	_, err = io.WriteString(b, "after\n")
	require.NoError(t, err)
	text, _ = w.get()
	assert.Equal(t, "before\nafter\n", text)
}
