package httpclient_test

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"example.com/tandem/kit/httpclient"
	"example.com/tandem/kit/kittest"
)

// blackHole makes an address that answers no attempt to connect, as that of a
// pod whose node is gone: Linux drops them while a queue of length 0 is full.
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

func TestAddressThatDoesNotAnswerIsNotTriedFirstEachTime(t *testing.T) {
	port, hosts := kittest.FreePort(), kittest.Loopbacks(t, 3)
	blackHole(t, join(hosts[0], port))
	began, release := make(chan string), make(chan struct{})
	for _, host := range hosts[1:] {
		pod(t, join(host, port), 0, func(w http.ResponseWriter, r *http.Request) {
			if r.URL.RawQuery == "hold" {
				began <- host
				<-release
			}
			w.Header().Set("Connection", "close")
			ok(w, r)
		})
	}
	names.Set("blackhole.test", hosts...)
	client := newClient(t, httpclient.Options{})

	// With a connection to each of the others, this address has the fewest.
	var held sync.WaitGroup
	seen := map[string]bool{}
	for len(seen) < 2 {
		held.Go(func() { assert.NoError(t, get(t, client, "http://blackhole.test:"+port+"/?hold").err) })
		seen[<-began] = true
	}
	start := time.Now()
	for range 20 {
		r := get(t, client, "http://blackhole.test:"+port)
		assert.NoError(t, r.err)
		assert.Equal(t, 1, r.Attempts)
	}
	assert.Less(t, time.Since(start), 10*time.Second, "a second for each would be 20")
	close(release)
	held.Wait()
}

func TestAttemptHasTimeForAnAddressThatDoesNotAnswerAndAnother(t *testing.T) {
	port, hosts := kittest.FreePort(), kittest.Loopbacks(t, 2)
	blackHole(t, join(hosts[0], port))
	pod(t, join(hosts[1], port), 0, ok)
	names.Set("blackhole-first.test", hosts...)
	together(6, 6, func(int) { // each begins with either
		client := newClient(t, httpclient.Options{Timeout: 2 * time.Second}) // the services' own
		r := get(t, client, "http://blackhole-first.test:"+port)
		assert.Equal(t, "ok", r.body, "%v", r.err)
		assert.Equal(t, 1, r.Attempts)
	})
}

func TestConnectionsThatAreLeftHoldNoPorts(t *testing.T) {
	url, _ := serve(t, func(_ int, w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) })
	client := newClient(t, httpclient.Options{})
	for range 10 {
		assert.NoError(t, get(t, client, url).err)
	}
	_, port, err := net.SplitHostPort(strings.TrimPrefix(url, "http://"))
	require.NoError(t, err)
	number, err := strconv.Atoi(port)
	require.NoError(t, err)
	table, err := os.ReadFile("/proc/net/tcp")
	require.NoError(t, err)
	assert.NotRegexp(t, fmt.Sprintf(`:%04X 06 `, number), string(table), "TIME_WAIT towards the server")
}
