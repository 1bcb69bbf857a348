package httpclient_test

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"example.com/tandem/kit/call"
	"example.com/tandem/kit/httpclient"
	"example.com/tandem/kit/kittest"
)

// blackHole makes an address drop every SYN, like that of a pod whose node is gone:
// Linux drops SYNs while the accept queue, here of length 0, is full.
func blackHole(t *testing.T, addr string) {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, l.Close()) })
	raw, err := l.(*net.TCPListener).SyscallConn()
	require.NoError(t, err)
	require.NoError(t, raw.Control(func(fd uintptr) { err = syscall.Listen(int(fd), 0) }))
	require.NoError(t, err)
	for {
		conn, err := net.DialTimeout("tcp", addr, 200*time.Millisecond)
		if err != nil {
			return
		}
		t.Cleanup(func() { assert.NoError(t, conn.Close()) })
	}
}

// A dial to an address that drops SYNs leaves time for another address. Only the first
// calls and later trials dial it.
func TestDial_BlackHoleFailsNoCall(t *testing.T) {
	port, hosts := kittest.FreePort(), kittest.Loopbacks(t, 3)
	blackHole(t, join(hosts[0], port))
	for _, host := range hosts[1:] {
		pod(t, join(host, port), time.Nanosecond, ok) // a connection for each call
	}
	names.Set("drops.test", hosts...)
	client := newClient(t, httpclient.Options{Timeout: 2 * time.Second}) // the default of the services
	var attempts atomic.Int64
	together(300, 20, func(int) {
		r := get(t, client, "http://drops.test:"+port)
		assert.NoError(t, r.err)
		attempts.Add(int64(r.Attempts))
	})
	assert.LessOrEqual(t, attempts.Load(), int64(340))
}

// If every address drops SYNs, a call fails with class unavailable long before its
// deadline. Its dials end with it, so that they cannot pile up.
func TestDial_EndsWithItsCall(t *testing.T) {
	port, hosts := kittest.FreePort(), kittest.Loopbacks(t, 10)
	for _, host := range hosts {
		blackHole(t, join(host, port))
	}
	names.Set("all-drop.test", hosts...)
	client := newClient(t, httpclient.Options{Timeout: 10 * time.Second})
	start := time.Now()
	together(50, 50, func(int) {
		r := get(t, client, "http://all-drop.test:"+port)
		assert.Equal(t, call.Unavailable, r.class, "%v", r.err)
		assert.LessOrEqual(t, r.Attempts, 3)
	})
	assert.Less(t, time.Since(start), 5*time.Second, "each call makes three dials of 0.4 s")
	assert.Zero(t, synSent(t, port), "no dial outlives its call")
}

// synSent returns how many connections to a port are in state SYN_SENT.
func synSent(t *testing.T, port string) int {
	t.Helper()
	number, err := strconv.Atoi(port)
	require.NoError(t, err)
	table, err := os.ReadFile("/proc/net/tcp")
	require.NoError(t, err)
	return strings.Count(string(table), fmt.Sprintf(":%04X 02 ", number))
}
