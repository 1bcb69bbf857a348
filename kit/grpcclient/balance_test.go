package grpcclient_test

import (
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"

	"example.com/tandem/kit/call"
	"example.com/tandem/kit/grpcclient"
	"example.com/tandem/kit/internal/echo"
	"example.com/tandem/kit/kittest"
)

func TestCallsAreSpreadEvenlyOverAllAddressesOfAName(t *testing.T) {
	port, hosts := kittest.FreePort(), kittest.Loopbacks(t, 3)
	for _, host := range hosts {
		start(t, join(host, port), 0, echo.Echo{})
	}
	names.Set("spread.test", hosts...)
	conn := newClient(t, "dns:///spread.test:"+port, grpcclient.Options{})
	kittest.Eventually(t, func() bool { return len(round(t, conn, 10)) == 3 }, "all three are connected to")
	by := round(t, conn, 300)
	for _, host := range hosts {
		assert.InDelta(t, 100, by[host], 25, "%v", by)
	}
	assert.ElementsMatch(t, []string{join(hosts[0], port), join(hosts[1], port), join(hosts[2], port)}, say(t.Context(), conn).Addresses)
}

func TestServerThatIsNotServingGetsNothingUntilItIsAgain(t *testing.T) {
	port, hosts := kittest.FreePort(), kittest.Loopbacks(t, 3)
	var pods []pod
	for _, host := range hosts {
		pods = append(pods, start(t, join(host, port), 0, echo.Echo{}))
	}
	names.Set("sick.test", hosts...)
	conn := newClient(t, "dns:///sick.test:"+port, grpcclient.Options{})
	kittest.Eventually(t, func() bool { return len(round(t, conn, 10)) == 3 }, "all three are connected to")

	pods[0].health.SetSick(true)
	healthy := func() bool { return round(t, conn, 100)[hosts[0]] == 0 }
	kittest.Eventually(t, healthy, "the sick one gets nothing more")
	assert.ElementsMatch(t, hosts[1:], slices.Collect(maps.Keys(round(t, conn, 300))))

	pods[0].health.SetSick(false)
	kittest.Eventually(t, func() bool { return round(t, conn, 90)[hosts[0]] >= 20 }, "it has its share again")

	pods[1].health.Drain()
	kittest.Eventually(t, func() bool { return round(t, conn, 100)[hosts[1]] == 0 }, "the draining one gets nothing more")
}

func TestNewAddressGetsItsShareOnceConnectionsHaveAged(t *testing.T) {
	t.Parallel()
	port, hosts := kittest.FreePort(), kittest.Loopbacks(t, 4)
	for _, host := range hosts {
		start(t, join(host, port), 2*time.Second, echo.Echo{})
	}
	names.Set("join.test", hosts[:3]...)
	conn := newClient(t, "dns:///join.test:"+port, grpcclient.Options{})
	kittest.Eventually(t, func() bool { return len(round(t, conn, 10)) == 3 }, "all three are connected to")

	// gRPC asks DNS again when a connection is lost, which MaxConnectionAge sees
	// to.
	names.Set("join.test", hosts...)
	begin := time.Now()
	for time.Since(begin) < 2*time.Minute && round(t, conn, 40)[hosts[3]] < 5 {
		time.Sleep(50 * time.Millisecond)
	}
	by := round(t, conn, 400)
	assert.GreaterOrEqual(t, by[hosts[3]], 50, "half of a fair share: %v", by)
	assert.Len(t, by, 4)
}

func TestDeadAddressFailsNoCall(t *testing.T) {
	port, hosts := kittest.FreePort(), kittest.Loopbacks(t, 3)
	for _, host := range hosts[1:] {
		start(t, join(host, port), 0, echo.Echo{})
	}
	names.Set("dead.test", hosts...)
	conn := newClient(t, "dns:///dead.test:"+port, grpcclient.Options{})
	assert.NotContains(t, round(t, conn, 300), hosts[0])
}

func TestServersOwnFailureIsNotTakenForADeadAddress(t *testing.T) {
	port, hosts := kittest.FreePort(), kittest.Loopbacks(t, 2)
	service, _ := failing(1<<40, codes.Unavailable)
	start(t, join(hosts[0], port), 0, service)
	names.Set("half.test", hosts...)
	conn := newClient(t, "dns:///half.test:"+port, grpcclient.Options{})
	for begin := time.Now(); time.Since(begin) < time.Second; { // meanwhile the dead one is dialled again
		r := say(t.Context(), conn)
		require.Equal(t, call.Unavailable, r.class, "%v", r.err)
		require.Equal(t, join(hosts[0], port), r.Peer)
	}
}
