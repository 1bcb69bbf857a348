package azure

import (
	"bytes"
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"example.com/tandem/deploy/e2e/azure/arm"
)

// AKS Automatic gets what it does not set itself, and no settings of nodes.
func TestUp_Automatic(t *testing.T) {
	t.Parallel()
	r := newRig(t, arm.Options{})
	defer done(t, time.Now(), "everything, with AKS_SKU=automatic", "the SKU, monitors and Gateway API; no autoscaler or zones")
	r.script("up.sh", []string{"AKS_SKU=automatic"}, "--yes").require(t)
	cluster := body(t, r.Changes(), "PUT", "/managedClusters/tandem")
	assert.Equal(t, "Automatic", at(cluster, "sku", "name"))
	pools, _ := at(cluster, "properties", "agentPoolProfiles").([]any)
	for _, pool := range pools {
		assert.NotEqual(t, true, at(pool, "enableAutoScaling"))
		assert.Nil(t, at(pool, "minCount"))
	}
	assert.Equal(t, "Standard", at(cluster, "properties", "ingressProfile", "gatewayAPI", "installation"))
	assert.Equal(t, true, at(r.Resources()[clusterPath], "properties", "azureMonitorProfile", "metrics", "enabled"))
}

// With MESH=istio, the cluster has the Istio add-on and not its gateways by application
// routing, and the pods join the revision that the cluster names.
func TestUp_Istio(t *testing.T) {
	t.Parallel()
	r := newRig(t, arm.Options{})
	defer done(t, time.Now(), "everything, with MESH=istio", "the mesh instead of application routing; its revision on the namespace")
	r.script("up.sh", []string{"MESH=istio"}, "--yes").require(t)
	cluster := body(t, r.Changes(), "PUT", "/managedClusters/tandem")
	assert.Equal(t, "Istio", at(cluster, "properties", "serviceMeshProfile", "mode"))
	assert.Nil(t, at(cluster, "properties", "ingressProfile", "webAppRouting", "gatewayAPIImplementations", "appRoutingIstio"))
	assert.Contains(t, r.recorded("applied.yaml"), "istio.io/rev: "+arm.MeshRevision)
}

// AKS_ADMIN may be a group, if AKS_ADMIN_TYPE says so.
func TestUp_AdminIsGroup(t *testing.T) {
	t.Parallel()
	r := afterFresh(t)
	defer done(t, time.Now(), "the role of a group", "with AKS_ADMIN_TYPE=Group, the group gets the role; without it, the last line names the setting")
	const admins = "66666666-6666-4666-8666-666666666666"
	r.Add("/v1.0/groups/"+admins, map[string]any{"id": admins, "displayName": "admins"})
	got := r.script("up.sh", []string{"AKS_ADMIN=" + admins}, "--yes")
	require.Error(t, got.err)
	assert.Contains(t, lastLine(got.stderr), "AKS_ADMIN="+admins+" is not a User; set AKS_ADMIN_TYPE")
	r.script("up.sh", []string{"AKS_ADMIN=" + admins, "AKS_ADMIN_TYPE=Group"}, "--yes").require(t)
	assert.Equal(t, []string{"/managedclusters/tandem " + clusterAdmin}, rolesOf(admins, r.Resources()))
}

// What follows the question is for the subscription that it named, though another terminal chooses another one meanwhile.
func TestUp_KeepsSubscription(t *testing.T) {
	t.Parallel()
	r := newRig(t, arm.Options{})
	defer done(t, time.Now(), "everything, while az account set chooses another subscription", "each later request is for the first one")
	const other = "77777777-7777-4777-8777-777777777777"
	file := filepath.Join(r.Configuration(), "azureProfile.json")
	content, err := os.ReadFile(file)
	require.NoError(t, err)
	var profile struct {
		ID            string           `json:"installationId"`
		Subscriptions []map[string]any `json:"subscriptions"`
	}
	require.NoError(t, json.Unmarshal(bytes.TrimPrefix(content, []byte("\ufeff")), &profile))
	require.Len(t, profile.Subscriptions, 1)
	chosen := maps.Clone(profile.Subscriptions[0])
	chosen["id"], chosen["name"] = other, "Other"
	profile.Subscriptions[0]["isDefault"] = false
	profile.Subscriptions = append(profile.Subscriptions, chosen)
	content, err = json.Marshal(profile)
	require.NoError(t, err)
	var once sync.Once
	chose := make(chan error, 1)
	r.OnChange(func(arm.Request) { once.Do(func() { chose <- os.WriteFile(file, content, 0o600) }) })
	r.script("up.sh", nil, "--yes").require(t)
	require.NoError(t, <-chose)
	assert.Equal(t, other, strings.TrimSpace(r.shell("az account show --query id --output tsv").stdout))
	for _, q := range r.Requests() {
		assert.NotContains(t, q.Path, other)
	}
}

// A region without zones gets nodes in none, which up.sh says. Unregistered providers
// are registered.
func TestUp_NoZones(t *testing.T) {
	t.Parallel()
	r := newRig(t, arm.Options{})
	defer done(t, time.Now(), "everything, in a region without zones, with two providers unregistered", "no zones; both providers registered")
	r.Unregister("Microsoft.ContainerService")
	r.Unregister("Microsoft.AlertsManagement")
	got := r.script("up.sh", []string{"AKS_LOCATION=" + arm.RegionWithoutZones}, "--yes")
	got.require(t)
	assert.Contains(t, got.stderr, "no availability zones")
	pools := at(body(t, r.Changes(), "PUT", "/managedClusters/tandem"), "properties", "agentPoolProfiles").([]any)
	require.Len(t, pools, 1)
	assert.Nil(t, at(pools[0], "availabilityZones"))
	for _, provider := range []string{"Microsoft.ContainerService", "Microsoft.AlertsManagement"} {
		body(t, r.Changes(), "POST", "/providers/"+provider+"/register")
	}
}

// Without --yes and without an answer, up.sh changes nothing.
func TestUp_AsksFirst(t *testing.T) {
	t.Parallel()
	r := newRig(t, arm.Options{})
	defer done(t, time.Now(), "nothing", "it says what it would make and what that costs, and asks")
	got := r.script("up.sh", nil)
	require.Error(t, got.err)
	assert.Contains(t, got.stdout, "an hour")
	assert.Contains(t, lastLine(got.stderr), "nothing was changed")
	assert.Empty(t, r.Changes())
}
