package azure

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"example.com/tandem/deploy/e2e/azure/arm"
)

// down.sh leaves nothing behind, inside the group or outside of it, and keeps what is not
// its own. A second one says that there is nothing.
func TestDown_LeavesNothing(t *testing.T) {
	t.Parallel()
	r := afterFresh(t)
	defer done(t, time.Now(), "down after the fresh run, twice", "nothing is left in Azure and in the kubeconfig; a foreign group stays; the second run changes nothing, and keeps a context")
	foreign := "/subscriptions/" + arm.Subscription + "/resourceGroups/other"
	r.Add(foreign, map[string]any{"location": "eastus2"})
	// An assignment of the cluster's identity outside of the group, as for a virtual network.
	identity := at(fresh.resources[clusterPath], "identity", "principalId")
	r.Add(foreign+"/providers/Microsoft.Authorization/roleAssignments/1", map[string]any{"properties": map[string]any{
		"principalId": identity, "roleDefinitionId": "/subscriptions/" + arm.Subscription + "/providers/Microsoft.Authorization/roleDefinitions/" + acrPull,
	}})
	got := r.script("down.sh", nil, "--yes")
	got.require(t)
	left := r.Resources()
	assert.Len(t, left, 1, "%v", states(left))
	assert.Contains(t, left, "/subscriptions/"+arm.Subscription+"/resourcegroups/other")
	if config, err := os.ReadFile(filepath.Join(r.home, "kubeconfig")); r.hasKubectl() && assert.NoError(t, err) {
		assert.NotContains(t, string(config), "azmk8s.io") // the cluster
		assert.NotContains(t, string(config), "clusterUser")
		assert.NotContains(t, string(config), "name: tandem")
	}
	// The context may now be that of another subscription.
	before := len(r.Changes())
	require.NoError(t, os.WriteFile(filepath.Join(r.home, "kubeconfig"), fresh.kubeconfig, 0o600))
	again := r.script("down.sh", nil, "--yes")
	again.require(t)
	assert.Contains(t, again.stderr, "nothing to delete")
	assert.Len(t, r.Changes(), before)
	config, err := os.ReadFile(filepath.Join(r.home, "kubeconfig"))
	require.NoError(t, err)
	assert.Equal(t, string(fresh.kubeconfig), string(config))
}

// With --purge, the workspace is deleted for good. The case of the group's name does not matter.
func TestDown_Purge(t *testing.T) {
	t.Parallel()
	r := afterFresh(t)
	defer done(t, time.Now(), "down --purge", "the workspace of the logs is deleted with force=true, before the group")
	r.script("down.sh", []string{"AKS_GROUP=Tandem", "AKS_CLUSTER=tandem"}, "--yes", "--purge").require(t)
	for _, c := range r.Requests() {
		if c.Method == http.MethodDelete {
			assert.Regexp(t, `(?i)/workspaces/tandem-logs$`, c.Path, "the first deletion")
			assert.Equal(t, "true", c.Query.Get("force"))
			break
		}
	}
	assert.Empty(t, r.Resources())
}

// The group is deleted even if what is outside of it cannot be. The last lines are the commands that remain to be run.
func TestDown_DeletesWhatItMay(t *testing.T) {
	t.Parallel()
	r := afterFresh(t)
	defer done(t, time.Now(), "down, with a 403 on an app and on a role assignment outside of the group", "the group is deleted; the commands for the rest are printed; the run fails")
	r.script("github.sh", nil, "owner/repository").require(t)
	app := at(r.Resources()[groupPath], "tags", "github-app").(string)
	outside := "/subscriptions/" + arm.Subscription + "/resourceGroups/other/providers/Microsoft.Authorization/roleAssignments/1"
	r.Add(outside, map[string]any{"properties": map[string]any{
		"principalId":      at(fresh.resources[clusterPath], "identity", "principalId"),
		"roleDefinitionId": "/subscriptions/" + arm.Subscription + "/providers/Microsoft.Authorization/roleDefinitions/" + acrPull,
	}})
	r.Inject(arm.Fault{Method: http.MethodDelete, Path: "^/v1.0/applications/|/roleassignments/", Status: http.StatusForbidden,
		Code: "Authorization_RequestDenied", Message: "Insufficient privileges to complete the operation."})
	got := r.script("down.sh", nil, "--yes")
	require.Error(t, got.err)
	assert.True(t, strings.HasSuffix(got.stderr, "\naz role assignment delete --ids "+outside+"\naz ad app delete --id "+app+"\n"), got.stderr)
	assert.NotContains(t, r.Resources(), groupPath)
}

// A group that up.sh did not make is refused, and without an answer nothing is deleted.
func TestDown_Refuses(t *testing.T) {
	t.Parallel()
	r := afterFresh(t)
	defer done(t, time.Now(), "nothing", "down asks; it refuses a group without the tag")
	got := r.script("down.sh", nil)
	require.Error(t, got.err)
	assert.Contains(t, lastLine(got.stderr), "nothing was changed")

	r.Add("/subscriptions/"+arm.Subscription+"/resourceGroups/tandem", map[string]any{"location": "eastus2", "tags": map[string]any{"made-by": "somebody"}})
	got = r.script("down.sh", nil, "--yes")
	require.Error(t, got.err)
	assert.Contains(t, lastLine(got.stderr), "not from aks-up")
	assert.Empty(t, r.Changes())
}
