package grpcclient_test

import (
	"testing"

	"github.com/stretchr/testify/assert"

	"example.com/tandem/kit/call"
	"example.com/tandem/kit/grpcclient"
	"example.com/tandem/kit/internal/echo"
	"example.com/tandem/kit/kittest"
)

// A View shows the addresses without a call, and which of them get no calls.
func TestView_ShowsEndpoints(t *testing.T) {
	hosts, port := kittest.Loopbacks(t, 2), kittest.FreePort()
	if hosts[0] > hosts[1] { // addresses are sorted
		hosts[0], hosts[1] = hosts[1], hosts[0]
	}
	first := start(t, join(hosts[0], port), 0, echo.Echo{})
	second := start(t, join(hosts[1], port), 0, echo.Echo{})
	names.Set("view.test", hosts...)
	view := &grpcclient.View{}
	newClient(t, "dns:///view.test:"+port, grpcclient.Options{View: view})
	await := func(description string, firstNotReady, secondNotReady bool) {
		t.Helper()
		want := []call.Endpoint{{Addr: join(hosts[0], port), NotReady: firstNotReady}, {Addr: join(hosts[1], port), NotReady: secondNotReady}}
		kittest.Eventually(t, func() bool { return assert.ObjectsAreEqual(want, view.Endpoints()) }, description)
	}
	await("both are ready", false, false)
	first.health.SetNotReady(true)
	await("health says that one is not ready", true, false)
	first.health.SetNotReady(false)
	await("it is ready again", false, false)
	second.stop()
	await("one has stopped", false, true)
}
