package httpclient_test

import (
	"net"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"example.com/tandem/kit/call"
	"example.com/tandem/kit/httpclient"
	"example.com/tandem/kit/kittest"
)

// Calls to an unknown name fail with class dns, and succeed once the name exists.
func TestClient_UnknownName(t *testing.T) {
	url, _ := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) { ok(w, r) })
	host, port, err := net.SplitHostPort(url[len("http://"):])
	require.NoError(t, err)
	client := newClient(t, httpclient.Options{})

	names.Set("late.test") // a run before may have set it
	r := get(t, client, "http://late.test:"+port)
	assert.Equal(t, call.DNS, r.class, "%v", r.err)
	assert.Empty(t, r.Addresses)

	names.Set("late.test", host)
	r = get(t, client, "http://late.test:"+port)
	assert.Equal(t, "ok", r.body, "%v", r.err)
	assert.Equal(t, []string{join(host, port)}, r.Addresses)
}

// While DNS fails or does not respond, the known addresses remain in use. Once DNS
// responds, new addresses are found.
func TestClient_SurvivesDNSOutage(t *testing.T) {
	for name, breakDNS := range map[string]func() (fix func()){
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

			names.Set("outage-"+name+".test", hosts[1]) // unknown to the client until DNS responds
			fix := breakDNS()
			defer fix()
			for range 3 {
				r := get(t, client, url)
				require.NoError(t, r.err)
				assert.Equal(t, 1, r.Attempts)
				assert.Equal(t, join(hosts[0], port), r.Peer)
				assert.Equal(t, []string{join(hosts[0], port)}, r.Addresses)
			}
			fix()
			stop()
			kittest.Eventually(t, func() bool { return get(t, client, url).err == nil }, "the new address gets calls")
		})
	}
}

// A server that closes its connection may be shutting down: the name is looked up
// before its addresses are 10 s old, but not for each call.
func TestClient_LooksUpWhenServerCloses(t *testing.T) {
	t.Parallel()
	host, port := unused(t)
	pod(t, join(host, port), time.Nanosecond, ok) // a connection for each call
	names.Set("closes.test", host)
	before := names.Queries("closes.test")
	client := newClient(t, httpclient.Options{})
	for until := time.Now().Add(3 * time.Second); time.Now().Before(until); time.Sleep(10 * time.Millisecond) {
		require.NoError(t, get(t, client, "http://closes.test:"+port).err)
	}
	assert.GreaterOrEqual(t, names.Queries("closes.test")-before, 2)
	assert.LessOrEqual(t, names.Queries("closes.test")-before, 20)
}

// A hundred concurrent calls that need an address share one lookup. Later calls need
// none.
func TestClient_SharesLookups(t *testing.T) {
	host, port := unused(t)
	all := make(chan struct{})
	var inFlight atomic.Int64
	pod(t, join(host, port), 0, func(w http.ResponseWriter, r *http.Request) {
		if inFlight.Add(1) == 100 {
			close(all) // each of the first calls has a connection of its own
		}
		<-all
		ok(w, r)
	})
	names.Set("shared.test", host)
	before := names.Queries("shared.test")
	client := newClient(t, httpclient.Options{})
	together(300, 100, func(int) { assert.NoError(t, get(t, client, "http://shared.test:"+port).err) })
	assert.LessOrEqual(t, names.Queries("shared.test")-before, 2)
}

// The addresses of a name that no longer exists remain in use for some seconds, and
// are dropped then.
func TestClient_DropsAddressesOfLostName(t *testing.T) {
	host, port := unused(t)
	pod(t, join(host, port), time.Nanosecond, ok)
	names.Set("gone.test", host)
	client := newClient(t, httpclient.Options{})
	assert.Equal(t, "ok", get(t, client, "http://gone.test:"+port).body)

	names.Set("gone.test")
	r := get(t, client, "http://gone.test:"+port)
	assert.Equal(t, "ok", r.body, "a DNS server that has just started may not know the name yet: %v", r.err)
	kittest.Eventually(t, func() bool { return get(t, client, "http://gone.test:"+port).err != nil }, "the address is dropped")
	// That call may have made an attempt before: on a busy machine a dial may time out.
	r = get(t, client, "http://gone.test:"+port)
	assert.Equal(t, call.DNS, r.class, "%v", r.err)
	assert.Equal(t, 1, r.Attempts)
	assert.Empty(t, r.Addresses)

	names.Break(true)
	defer names.Break(false)
	r = get(t, client, "http://gone.test:"+port)
	assert.Equal(t, call.DNS, r.class, "%v", r.err)
	assert.Empty(t, r.Addresses)
}

// If a name no longer exists and its address refuses connections, calls fail with
// class dns.
func TestClient_LostNameIsDNS(t *testing.T) {
	host, port := unused(t)
	stop := pod(t, join(host, port), time.Nanosecond, ok)
	names.Set("gone-too.test", host)
	client := newClient(t, httpclient.Options{})
	assert.Equal(t, "ok", get(t, client, "http://gone-too.test:"+port).body)
	names.Set("gone-too.test")
	stop()
	kittest.Eventually(t, func() bool { return get(t, client, "http://gone-too.test:"+port).class == call.DNS }, "the class is dns")
}

// The first call waits for the lookup.
func TestClient_WaitsForFirstLookup(t *testing.T) {
	host, port := unused(t)
	pod(t, join(host, port), 0, ok)
	names.Set("new.test", host)
	dnsLate.Store(int64(500 * time.Millisecond))
	defer dnsLate.Store(0)
	r := get(t, newClient(t, httpclient.Options{}), "http://new.test:"+port)
	assert.Equal(t, "ok", r.body, "%v", r.err)
	assert.Equal(t, 1, r.Attempts)
}
