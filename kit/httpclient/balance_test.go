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

// Every address behind a name gets its share of the calls, call by call.
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

// A new address has its share within one refresh of the name.
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
	}, "the new address has half of a fair share")
}

// An address at which nothing listens costs retries now and then, and no call.
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
	assert.LessOrEqual(t, attempts.Load(), int64(320), "the first calls side by side, and then a trial a second")
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

// While DNS is away, addresses that are known remain in use; once it is back,
// new ones are found.
func TestClient_SurvivesAnOutageOfDNS(t *testing.T) {
	for name, trouble := range map[string]func() (mend func()){
		"servfail": func() func() { names.Break(true); return func() { names.Break(false) } },
		"silence": func() func() {
			dnsLate.Store(int64(time.Hour))
			return func() { dnsLate.Store(0) }
		},
	} {
		t.Run(name, func(t *testing.T) {
			port, hosts := kittest.FreePort(), kittest.Loopbacks(t, 2)
			stop := pod(t, join(hosts[0], port), time.Nanosecond, ok) // a connection for each call
			pod(t, join(hosts[1], port), time.Nanosecond, ok)
			client := newClient(t, httpclient.Options{Timeout: 4 * time.Second})
			url := "http://outage-" + name + ".test:" + port
			names.Set("outage-"+name+".test", hosts[0])
			require.NoError(t, get(t, client, url).err)

			names.Set("outage-"+name+".test", hosts[1]) // which nobody can hear for now
			mend := trouble()
			defer mend()
			for range 3 {
				r := get(t, client, url)
				require.NoError(t, r.err)
				assert.Equal(t, 1, r.Attempts)
				assert.Equal(t, join(hosts[0], port), r.Peer)
				assert.Equal(t, []string{join(hosts[0], port)}, r.Addresses)
			}
			mend()
			stop()
			kittest.Eventually(t, func() bool { return get(t, client, url).err == nil }, "the new address is found")
		})
	}
}

// A server that closes its connection may be leaving: the name is looked up
// before its addresses are 10 s old, but not for each call.
func TestClient_LooksUpWhenServerCloses(t *testing.T) {
	t.Parallel()
	host, port := unused(t)
	pod(t, join(host, port), time.Nanosecond, ok) // a connection for each call
	names.Set("closes.test", host)
	client := newClient(t, httpclient.Options{})
	for until := time.Now().Add(3 * time.Second); time.Now().Before(until); time.Sleep(10 * time.Millisecond) {
		require.NoError(t, get(t, client, "http://closes.test:"+port).err)
	}
	assert.GreaterOrEqual(t, names.Queries("closes.test"), 2)
	assert.LessOrEqual(t, names.Queries("closes.test"), 20)
}

// A hundred calls that need an address at the same time share one lookup, as
// with net/http. Later calls need none.
func TestClient_SharesLookups(t *testing.T) {
	host, port := unused(t)
	all := make(chan struct{})
	var inFlight atomic.Int64
	pod(t, join(host, port), 0, func(w http.ResponseWriter, r *http.Request) {
		if inFlight.Add(1) == 100 {
			close(all) // each of the first has a connection of its own
		}
		<-all
		ok(w, r)
	})
	names.Set("shared.test", host)
	client := newClient(t, httpclient.Options{})
	together(300, 100, func(int) { assert.NoError(t, get(t, client, "http://shared.test:"+port).err) })
	assert.LessOrEqual(t, names.Queries("shared.test"), 2)
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
	kittest.Eventually(t, func() bool { return get(t, client, "http://gone-too.test:"+port).class == call.DNS }, "the class is that of the cause")
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
