package azure

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"example.com/tandem/deploy/e2e/azure/arm"
)

const (
	groupPath      = "/subscriptions/" + arm.Subscription + "/resourcegroups/tandem"
	clusterPath    = groupPath + "/providers/microsoft.containerservice/managedclusters/tandem"
	registriesPath = groupPath + "/providers/microsoft.containerregistry/registries/"
	assignments    = "/providers/microsoft.authorization/roleassignments/"
	acrPull        = "7f951dda-4ed3-4680-a7ca-43fe172d538d"
	clusterAdmin   = "b1ff04bb-8a4e-4dc4-8eb5-8693973ce19b"
)

// fresh is the first run of up.sh in an empty subscription. The cases that need what it
// made share it.
var fresh struct {
	sync.Once
	result
	changes    []arm.Request
	resources  map[string]map[string]any
	commands   string // of kubectl and curl
	applied    string
	snapshot   []byte
	kubeconfig []byte
}

func runFresh(t *testing.T) {
	t.Helper()
	fresh.Do(func() {
		r := newRig(t, arm.Options{})
		fresh.result = r.script("up.sh", nil, "--yes")
		if fresh.err != nil {
			return
		}
		fresh.changes, fresh.resources = r.Changes(), r.Resources()
		fresh.commands, fresh.applied = r.recorded("commands"), r.recorded("applied.yaml")
		var err error
		fresh.snapshot, err = r.Snapshot()
		require.NoError(t, err)
		fresh.kubeconfig, err = os.ReadFile(filepath.Join(r.home, "kubeconfig"))
		require.NoError(t, err)
	})
	fresh.require(t)
}

// require ends the test if the command failed.
func (r result) require(t *testing.T) {
	t.Helper()
	require.NoError(t, r.err, "%s", r.stdout+r.stderr)
}

// afterFresh returns a rig with what the fresh run made.
func afterFresh(t *testing.T) *rig {
	t.Helper()
	runFresh(t)
	r := newRig(t, arm.Options{})
	require.NoError(t, r.Restore(fresh.snapshot))
	require.NoError(t, os.WriteFile(filepath.Join(r.home, "kubeconfig"), fresh.kubeconfig, 0o600))
	return r
}

// body returns the body of the first request whose path ends so, in any case.
func body(t *testing.T, changes []arm.Request, method, suffix string) map[string]any {
	t.Helper()
	for _, c := range changes {
		if c.Method == method && strings.HasSuffix(strings.ToLower(c.Path), strings.ToLower(suffix)) {
			return c.Body
		}
	}
	require.Failf(t, "request missing", "%s …%s is not in\n%s", method, suffix, summary(changes))
	return nil
}

// at returns the value at the keys, or nil.
func at(of any, keys ...string) any {
	for _, key := range keys {
		values, _ := of.(map[string]any)
		of = values[key]
	}
	return of
}

// In an empty subscription, up.sh makes all, and asks Azure for what it should.
func TestUp_Fresh(t *testing.T) {
	t.Parallel()
	defer done(t, time.Now(), "everything, in an empty subscription", "the bodies that az sent: network, Entra, autoscaler, zones, monitors, roles")
	runFresh(t)
	t.Logf("az changed:\n%s\n%s", summary(fresh.changes), fresh.stderr)
	group := body(t, fresh.changes, "PUT", "/resourcegroups/tandem")
	assert.Equal(t, "tandem-aks-up", at(group, "tags", "made-by"))

	cluster := body(t, fresh.changes, "PUT", "/managedClusters/tandem")
	properties := cluster["properties"]
	for _, want := range []struct {
		value any
		keys  []string
	}{
		{"azure", []string{"networkProfile", "networkPlugin"}},
		{"overlay", []string{"networkProfile", "networkPluginMode"}},
		{"cilium", []string{"networkProfile", "networkDataplane"}},
		{true, []string{"oidcIssuerProfile", "enabled"}},
		{true, []string{"securityProfile", "workloadIdentity", "enabled"}},
		{true, []string{"aadProfile", "managed"}},
		{true, []string{"aadProfile", "enableAzureRBAC"}},
		{true, []string{"disableLocalAccounts"}},
		{"patch", []string{"autoUpgradeProfile", "upgradeChannel"}},
		{"NodeImage", []string{"autoUpgradeProfile", "nodeOSUpgradeChannel"}},
		{"Standard", []string{"ingressProfile", "gatewayAPI", "installation"}},
		{"Enabled", []string{"ingressProfile", "webAppRouting", "gatewayAPIImplementations", "appRoutingIstio", "mode"}},
		{true, []string{"addonProfiles", "omsagent", "enabled"}},
		{nil, []string{"serviceMeshProfile"}},
		{nil, []string{"linuxProfile"}}, // no ssh key
	} {
		assert.Equal(t, want.value, at(properties, want.keys...), "%v", want.keys)
	}
	pools := at(properties, "agentPoolProfiles").([]any)
	require.Len(t, pools, 1)
	for key, want := range map[string]any{
		"enableAutoScaling": true, "minCount": 3.0, "maxCount": 5.0, "count": 3.0, "vmSize": "Standard_D2s_v5", "availabilityZones": []any{"1", "2", "3"},
	} {
		assert.Equal(t, want, at(pools[0], key), key)
	}
	assert.Equal(t, true, at(fresh.resources[clusterPath], "properties", "azureMonitorProfile", "metrics", "enabled"))
	assert.Equal(t, true, at(fresh.resources[clusterPath], "properties", "addonProfiles", "omsagent", "enabled"))

	t.Run("roles", func(t *testing.T) {
		kubelet := at(fresh.resources[clusterPath], "properties", "identityProfile", "kubeletidentity", "objectId")
		assert.Equal(t, []string{"/registries/" + registryName(t) + " " + acrPull}, rolesOf(kubelet, fresh.resources))
		assert.Equal(t, []string{"/managedclusters/tandem " + clusterAdmin}, rolesOf(arm.Caller, fresh.resources))
	})
	t.Run("identity", func(t *testing.T) {
		credential := body(t, fresh.changes, "PUT", "/federatedIdentityCredentials/service-a")
		assert.Equal(t, "system:serviceaccount:tandem:service-a", at(credential, "properties", "subject"))
		assert.Equal(t, at(fresh.resources[clusterPath], "properties", "oidcIssuerProfile", "issuerURL"), at(credential, "properties", "issuer"))
		assert.Equal(t, []any{"api://AzureADTokenExchange"}, at(credential, "properties", "audiences"))
	})
	t.Run("monitors", func(t *testing.T) {
		for _, name := range []string{"containerinsightsextension", "containerinsightsmetricsextension"} {
			assert.Contains(t, fresh.resources, clusterPath+"/providers/microsoft.insights/datacollectionruleassociations/"+name)
		}
		rules := fresh.resources[groupPath+"/providers/microsoft.alertsmanagement/prometheusrulegroups/tandem-tandem"]
		require.NotNil(t, rules, "the rule group")
		assert.Contains(t, at(rules, "properties", "scopes"), at(fresh.resources[clusterPath], "id"))
		assert.NotEmpty(t, at(rules, "properties", "rules"))
	})
	t.Run("deployed", func(t *testing.T) {
		login := at(fresh.resources[registriesPath+registryName(t)], "properties", "loginServer").(string)
		for _, service := range []string{"service-a", "service-b"} {
			assert.Regexp(t, "image: "+login+"/tandem/"+service+"@sha256:[0-9a-f]{64}\n", fresh.applied, "by digest, from the login server")
		}
		assert.NotContains(t, fresh.applied, "image: localhost/")
		assert.Contains(t, fresh.commands, "kubectl --context tandem --namespace tandem exec deploy/service-a")
		for _, transport := range []string{"http", "grpc"} {
			assert.Contains(t, fresh.commands, "via="+transport)
		}
		assert.Contains(t, string(fresh.kubeconfig), "azurecli", "kubelogin signs in with az's login")
	})
}

// registryName returns the name of the registry that the fresh run made.
func registryName(t *testing.T) string {
	t.Helper()
	for path := range fresh.resources {
		if name, isRegistry := strings.CutPrefix(path, registriesPath); isRegistry && !strings.Contains(name, "/") {
			return name
		}
	}
	require.Fail(t, "there is no registry")
	return ""
}

// A second run changes nothing.
func TestUp_Repeated(t *testing.T) {
	t.Parallel()
	r := afterFresh(t)
	defer done(t, time.Now(), "nothing", "no request that changes anything; the same manifests")
	got := r.script("up.sh", nil, "--yes")
	got.require(t)
	assert.Empty(t, summary(r.Changes()))
	assert.Equal(t, withoutPorts(fresh.applied), withoutPorts(r.recorded("applied.yaml")))
}

// A run that is killed after any of its changes goes on when it is repeated, and the end
// is that of a run which nobody stopped.
func TestUp_KilledAfterEachChange(t *testing.T) {
	t.Parallel()
	runFresh(t)
	r := newRig(t, arm.Options{})
	started, runs, seen := time.Now(), 0, map[string]bool{}
	defer func() {
		done(t, started, fmt.Sprintf("everything, in %d runs killed after their first change, and one to the end", runs), "the resources are those of the fresh run")
	}()
	for ; runs < 40; runs++ {
		got, killed := r.killedScript(seen, "up.sh", "--yes")
		if !killed {
			got.require(t)
			break
		}
	}
	require.Less(t, runs, 40, "the runs make no progress:\n%s", summary(r.Changes()))
	assert.Equal(t, states(fresh.resources), states(r.Resources()))
}

// states returns the state of each resource by its path. Role assignments have no name of their own.
func states(resources map[string]map[string]any) map[string]any {
	result := map[string]any{}
	for path, r := range resources {
		if scope, _, isAssignment := strings.Cut(path, assignments); isAssignment {
			path = scope + " " + at(r, "properties", "principalId").(string) + " " + at(r, "properties", "roleDefinitionId").(string)
		}
		result[path] = at(r, "properties", "provisioningState")
	}
	return result
}

// The commands of --dry-run do exactly what the run without it did.
func TestUp_DryRunIsTheRecipe(t *testing.T) {
	t.Parallel()
	runFresh(t)
	r := newRig(t, arm.Options{})
	r.withoutServer() // so that it also shows that the server changes nothing
	defer done(t, time.Now(), "everything, by the commands that --dry-run printed", "the same changes in Azure, and the same manifests, as the fresh run")
	recipe := r.script("up.sh", nil, "--dry-run")
	recipe.require(t)
	assert.Empty(t, r.Requests(), "a dry run asks Azure nothing")
	cmd := exec.Command("bash")
	cmd.Stdin = strings.NewReader(recipe.stdout)
	r.run(cmd, nil).require(t)
	assert.Equal(t, summary(fresh.changes), summary(r.Changes()))
	assert.Equal(t, bodies(fresh.changes), bodies(r.Changes()))
	assert.Equal(t, withoutPorts(fresh.applied), withoutPorts(r.recorded("applied.yaml")))
}

// withoutPorts replaces the addresses of servers.
func withoutPorts(of string) string { return addresses.ReplaceAllString(of, "SERVER") }

func bodies(changes []arm.Request) []any {
	var all []any
	for _, c := range changes {
		all = append(all, c.Body)
	}
	return all
}
