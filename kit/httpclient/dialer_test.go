package httpclient_test

import (
	"maps"
	"net"
	"net/http"
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

// tally counts calls by the host that served them.
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

func TestCallsSpreadOverAllAddressesOfAName(t *testing.T) {
	const calls, atATime = 300, 30
	port, hosts := kittest.FreePort(), kittest.Loopbacks(t, 3)
	var inFlight atomic.Int64
	all := make(chan struct{})
	for _, host := range hosts {
		pod(t, join(host, port), 0, func(w http.ResponseWriter, r *http.Request) {
			if inFlight.Add(1) == atATime {
				close(all)
			}
			<-all // so that the first calls have a connection each
			ok(w, r)
		})
	}
	names.Set("spread.test", hosts...)
	client := newClient(t, httpclient.Options{})
	var first, later tally
	together(calls, atATime, func(i int) {
		r := get(t, client, "http://spread.test:"+port)
		assert.NoError(t, r.err)
		if i <= atATime {
			first.add(r)
		} else {
			later.add(r)
		}
	})
	assert.Equal(t, map[string]int{hosts[0]: 10, hosts[1]: 10, hosts[2]: 10}, first.by, "a new connection goes where there are fewest")
	for _, host := range hosts {
		assert.Greater(t, later.by[host], (calls-atATime)/3/4, "%v", later.by)
	}
}

func TestConnectionsThatAreClosedDoNotCount(t *testing.T) {
	port, hosts := kittest.FreePort(), kittest.Loopbacks(t, 2)
	began, release := make(chan struct{}), make(chan struct{})
	for _, host := range hosts {
		pod(t, join(host, port), 0, func(w http.ResponseWriter, r *http.Request) {
			began <- struct{}{}
			<-release
			ok(w, r)
		})
	}
	client := newClient(t, httpclient.Options{})
	// held makes calls on a connection each.
	held := func(n int) map[string]int {
		var served tally
		var calls sync.WaitGroup
		for range n {
			calls.Go(func() {
				r := get(t, client, "http://closed.test:"+port)
				assert.NoError(t, r.err)
				served.add(r)
			})
			<-began
		}
		for range n {
			release <- struct{}{}
		}
		calls.Wait()
		client.CloseIdleConnections()
		return served.by
	}
	names.Set("closed.test", hosts[0])
	assert.Equal(t, map[string]int{hosts[0]: 6}, held(6))
	names.Set("closed.test", hosts...)
	assert.Equal(t, map[string]int{hosts[0]: 3, hosts[1]: 3}, held(6))
}

func TestNewAddressGetsItsShareOnceConnectionsHaveAged(t *testing.T) {
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
	kittest.Eventually(t, func() bool { return round()[hosts[3]] >= calls/4/2 }, "the new address has half of a fair share")
}

func TestDeadAddressFailsNoCall(t *testing.T) {
	port, hosts := kittest.FreePort(), kittest.Loopbacks(t, 3)
	for _, host := range hosts[1:] {
		pod(t, join(host, port), time.Nanosecond, ok) // a connection a call
	}
	names.Set("dead.test", hosts...)
	client := newClient(t, httpclient.Options{})
	var served tally
	together(300, 10, func(int) {
		r := get(t, client, "http://dead.test:"+port)
		assert.NoError(t, r.err)
		assert.Equal(t, 1, r.Attempts)
		served.add(r)
	})
	assert.ElementsMatch(t, hosts[1:], slices.Collect(maps.Keys(served.by)))
}

func TestCallsWorkAgainOnceTheNameExists(t *testing.T) {
	url, _ := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) { ok(w, r) })
	host, port, err := net.SplitHostPort(url[len("http://"):])
	require.NoError(t, err)
	client := newClient(t, httpclient.Options{})

	r := get(t, client, "http://late.test:"+port)
	assert.Equal(t, call.DNS, r.class, "%v", r.err)
	assert.Empty(t, r.Addresses)

	names.Set("late.test", host)
	r = get(t, client, "http://late.test:"+port)
	assert.Equal(t, "ok", r.body, "%v", r.err)
	assert.Equal(t, []string{join(host, port)}, r.Addresses)
}

func TestCallsWorkAgainOnceTheServerIsBack(t *testing.T) {
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

func TestOutageOfDNSCostsNothingForNamesThatAreKnown(t *testing.T) {
	port, hosts := kittest.FreePort(), kittest.Loopbacks(t, 2)
	for _, host := range hosts {
		pod(t, join(host, port), time.Nanosecond, ok) // a connection a call
	}
	for name, trouble := range map[string]func() (mend func()){
		"SERVFAIL": func() func() { names.Break(true); return func() { names.Break(false) } },
		"silence": func() func() {
			dnsLate.Store(int64(time.Hour))
			return func() { dnsLate.Store(0) }
		},
	} {
		t.Run(name, func(t *testing.T) {
			client := newClient(t, httpclient.Options{Timeout: 4 * time.Second}) // DNS gives up after 10
			ask := func(want string) {
				t.Helper()
				r := get(t, client, "http://outage.test:"+port)
				assert.Equal(t, "ok", r.body, "%v", r.err)
				assert.Equal(t, 1, r.Attempts)
				assert.Equal(t, join(want, port), r.Peer)
				assert.Equal(t, []string{join(want, port)}, r.Addresses)
			}
			names.Set("outage.test", hosts[0])
			ask(hosts[0])
			names.Set("outage.test", hosts[1]) // which no one can hear for now
			mend := trouble()
			defer mend()
			for range 3 {
				ask(hosts[0])
			}
			mend()
			ask(hosts[1])
		})
	}
}

func TestNameThatIsGoneIsForgotten(t *testing.T) {
	host, port := unused(t)
	pod(t, join(host, port), time.Nanosecond, ok)
	names.Set("gone.test", host)
	client := newClient(t, httpclient.Options{})
	assert.Equal(t, "ok", get(t, client, "http://gone.test:"+port).body)

	names.Set("gone.test")
	r := get(t, client, "http://gone.test:"+port)
	assert.Equal(t, "ok", r.body, "a DNS that has just started may not know better: %v", r.err)
	assert.Equal(t, 1, r.Attempts)
	kittest.Eventually(t, func() bool {
		r = get(t, client, "http://gone.test:"+port)
		return r.err != nil
	}, "it is not forgotten")
	assert.Equal(t, call.DNS, r.class, "%v", r.err)
	assert.Equal(t, 1, r.Attempts)
	assert.Empty(t, r.Addresses)

	names.Break(true)
	defer names.Break(false)
	r = get(t, client, "http://gone.test:"+port)
	assert.Equal(t, call.DNS, r.class, "%v", r.err)
	assert.Empty(t, r.Addresses)
}

func TestNameThatIsGoneIsWhyItsAddressesAreOfNoUse(t *testing.T) {
	host, port := unused(t)
	stop := pod(t, join(host, port), time.Nanosecond, ok)
	names.Set("gone-too.test", host)
	client := newClient(t, httpclient.Options{})
	assert.Equal(t, "ok", get(t, client, "http://gone-too.test:"+port).body)
	names.Set("gone-too.test")
	stop()
	r := get(t, client, "http://gone-too.test:"+port)
	assert.Equal(t, call.DNS, r.class, "%v", r.err)
}

func TestNameThatIsNotKnownIsWaitedFor(t *testing.T) {
	host, port := unused(t)
	pod(t, join(host, port), 0, ok)
	names.Set("new.test", host)
	dnsLate.Store(int64(500 * time.Millisecond))
	defer dnsLate.Store(0)
	r := get(t, newClient(t, httpclient.Options{}), "http://new.test:"+port)
	assert.Equal(t, "ok", r.body, "%v", r.err)
	assert.Equal(t, 1, r.Attempts)
}
