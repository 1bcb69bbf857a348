package httpclient_test

import (
	"maps"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"example.com/tandem/kit/call"
	"example.com/tandem/kit/httpclient"
	"example.com/tandem/kit/kittest"
)

// tally counts calls by the host of their server.
type tally struct {
	mu sync.Mutex
	by map[string]int
}

func (c *tally) add(r result) {
	host, _, _ := net.SplitHostPort(r.Peer)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.by == nil {
		c.by = map[string]int{}
	}
	c.by[host]++
}

// Each address behind a name gets the same number of calls.
func TestClient_SpreadsOverAddresses(t *testing.T) {
	const calls = 300
	port, hosts := kittest.FreePort(), kittest.Loopbacks(t, 3)
	for _, host := range hosts {
		pod(t, join(host, port), 0, ok)
	}
	names.Set("spread.test", hosts...)
	client := newClient(t, httpclient.Options{})
	var served tally
	for range calls {
		r := get(t, client, "http://spread.test:"+port)
		require.NoError(t, r.err)
		served.add(r)
	}
	assert.Equal(t, map[string]int{hosts[0]: 100, hosts[1]: 100, hosts[2]: 100}, served.by)
}

// A new address gets its share within one refresh of the name.
func TestClient_FindsNewAddresses(t *testing.T) {
	const calls, atATime = 300, 30
	port, hosts := kittest.FreePort(), kittest.Loopbacks(t, 4)
	for _, host := range hosts {
		pod(t, join(host, port), 200*time.Millisecond, ok)
	}
	client := newClient(t, httpclient.Options{})
	round := func() map[string]int {
		var served tally
		together(calls, atATime, func(int) {
			r := get(t, client, "http://join.test:"+port)
			assert.NoError(t, r.err)
			served.add(r)
		})
		return served.by
	}
	names.Set("join.test", hosts[:3]...)
	assert.ElementsMatch(t, hosts[:3], slices.Collect(maps.Keys(round())))

	names.Set("join.test", hosts...)
	kittest.Eventually(t, func() bool {
		time.Sleep(100 * time.Millisecond)
		return round()[hosts[3]] >= calls/4/2
	}, "the new address gets at least half of its share")
}

// An address at which nothing listens costs few retries, and fails no call.
func TestClient_DeadAddressFailsNoCall(t *testing.T) {
	port, hosts := kittest.FreePort(), kittest.Loopbacks(t, 3)
	for _, host := range hosts[1:] {
		pod(t, join(host, port), time.Nanosecond, ok) // a connection for each call
	}
	names.Set("dead.test", hosts...)
	client := newClient(t, httpclient.Options{})
	var served tally
	var attempts atomic.Int64
	together(300, 10, func(int) {
		r := get(t, client, "http://dead.test:"+port)
		assert.NoError(t, r.err)
		attempts.Add(int64(r.Attempts))
		served.add(r)
	})
	assert.ElementsMatch(t, hosts[1:], slices.Collect(maps.Keys(served.by)))
	assert.LessOrEqual(t, attempts.Load(), int64(320), "the first concurrent calls, and then a trial a second")
}

// While a server is down, calls fail with class refused. They succeed once it is
// back.
func TestClient_ServerDown(t *testing.T) {
	host, port := unused(t)
	addr := join(host, port)
	names.Set("back.test", host)
	client := newClient(t, httpclient.Options{})

	for range 2 {
		r := get(t, client, "http://back.test:"+port)
		assert.Equal(t, call.Refused, r.class, "%v", r.err)

		stop := pod(t, addr, 0, ok)
		r = get(t, client, "http://back.test:"+port)
		assert.Equal(t, "ok", r.body, "%v", r.err)
		assert.Equal(t, addr, r.Peer)
		stop()
	}
}
