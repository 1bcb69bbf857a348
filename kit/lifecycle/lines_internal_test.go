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

type counting struct {
	mu     sync.Mutex
	text   strings.Builder
	writes int
}

func (c *counting) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.writes++
	return c.text.Write(p)
}

func (c *counting) get() (string, int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.text.String(), c.writes
}

// Lines are written together, soon, and in the order in which they came.
func TestLines_GathersAndKeepsOrder(t *testing.T) {
	var w counting
	l := &lines{w: &w}
	want := strings.Repeat("one\ntwo\n", 500)
	for range 500 {
		_, err := io.WriteString(l, "one\n")
		require.NoError(t, err)
		_, err = io.WriteString(l, "two\n")
		require.NoError(t, err)
	}
	require.Eventually(t, func() bool { text, _ := w.get(); return text == want }, 10*time.Second, time.Millisecond, "without a flush")
	_, writes := w.get()
	assert.Less(t, writes, 500, "of 1000")

	_, err := io.WriteString(l, "the last\n")
	require.NoError(t, err)
	l.Flush()
	text, _ := w.get()
	assert.Equal(t, want+"the last\n", text)
}

// After Unbuffer nothing waits: neither what was gathered before nor later lines.
func TestLines_UnbufferWritesAtOnce(t *testing.T) {
	var w counting
	l := &lines{w: &w}
	_, err := io.WriteString(l, "before\n")
	require.NoError(t, err)
	l.Unbuffer()
	text, _ := w.get()
	assert.Equal(t, "before\n", text)
	_, err = io.WriteString(l, "after\n")
	require.NoError(t, err)
	text, _ = w.get()
	assert.Equal(t, "before\nafter\n", text)
}
