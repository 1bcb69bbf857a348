package kittest

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"runtime"
	"strconv"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"example.com/tandem/kit/instance"
	"example.com/tandem/kit/telemetry"
)

// Telemetry is telemetry of its own for one test, which logs to w.
func Telemetry(t testing.TB, w io.Writer) *telemetry.Telemetry {
	t.Helper()
	tel, err := telemetry.New(t.Context(), instance.Instance{Service: "test", Version: "test", Pod: "test"}, 0, nil, w)
	require.NoError(t, err)
	t.Cleanup(tel.Flush)
	return tel
}

// Loopbacks returns n addresses in 127.0.0.0/8, each to be a pod: several
// servers behind one name must share its port, so they need addresses of their
// own. Only Linux has them without being told to; elsewhere the test skips.
func Loopbacks(t testing.TB, n int) []string {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skip("needs addresses such as 127.0.0.2, which only Linux has from the start")
	}
	out := make([]string, n)
	for i := range out {
		// At random, so that tests at the same time do not meet.
		out[i] = fmt.Sprintf("127.%d.%d.%d", 1+rand.IntN(254), rand.IntN(256), 1+rand.IntN(254))
	}
	return out
}

// FreePort is a TCP port of 127.0.0.1 that was free a moment ago.
func FreePort() string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err) // there is no loopback
	}
	defer l.Close() //nolint:errcheck // to be free is what it is for
	return strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
}

// Buffer is a bytes.Buffer that may be written and read at the same time.
type Buffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *Buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *Buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}
