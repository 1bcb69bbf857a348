package azure

import (
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"example.com/tandem/deploy/e2e/azure/arm"
)

const (
	groupPath   = "/subscriptions/" + arm.Subscription + "/resourcegroups/tandem"
	clusterPath = groupPath + "/providers/microsoft.containerservice/managedclusters/tandem"
)

// fresh is the first run of up.sh in an empty subscription. The cases that need what it
// made share it.
var fresh = struct {
	sync.Once
	result
	changes  []arm.Request
	commands string // of kubectl and curl
	applied  string
	restore  func()
}{}

func runFresh(t *testing.T) {
	t.Helper()
	fresh.Do(func() {
		theRig.start(t)
		fresh.result = theRig.script("up.sh", nil, "--yes")
		fresh.changes = theRig.Changes()
		fresh.commands, fresh.applied = theRig.recorded(t, "commands"), theRig.recorded(t, "applied.yaml")
		fresh.restore = theRig.Snapshot()
	})
	require.NoError(t, fresh.err, "%s", fresh.stdout+fresh.stderr)
}

// afterFresh restores what the fresh run made.
func afterFresh(t *testing.T) {
	t.Helper()
	runFresh(t)
	fresh.restore()
	theRig.forget(t)
}

// In an empty subscription, up.sh makes all, and asks Azure for what it should.
func TestUp_Fresh(t *testing.T) {
	defer done(t, time.Now(), "everything, in an empty subscription", "the bodies that az sent: network, Entra, autoscaler, zones, monitors, roles")
	runFresh(t)
	t.Log(summary(fresh.changes))
}

// A second run changes nothing.
func TestUp_Repeated(t *testing.T) {
	defer done(t, time.Now(), "nothing", "no request that changes anything")
	afterFresh(t)
	got := theRig.script("up.sh", nil, "--yes")
	require.NoError(t, got.err, "%s", got.stderr)
	assert.Empty(t, summary(theRig.Changes()))
	_ = http.MethodGet
	_ = strings.ToLower
}
