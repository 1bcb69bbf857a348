package azure

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"example.com/tandem/deploy/e2e/azure/arm"
)

// --deploy-only changes nothing in Azure but the images, and applies only what the role RBAC Writer may.
func TestDeployOnly_Deploys(t *testing.T) {
	t.Parallel()
	r := afterFresh(t)
	defer done(t, time.Now(), "a deployment to the cluster that exists", "no change in Azure; signs in at the cluster before the builds; no namespace and no custom resource is applied")
	got := r.script("up.sh", nil, "--deploy-only")
	got.require(t)
	assert.Empty(t, summary(r.Changes()))
	assert.NotContains(t, r.recorded("commands"), "rollout undo")
	applied := r.recorded("applied.yaml")
	for _, kind := range []string{"Deployment", "Service", "ConfigMap", "NetworkPolicy", "PodDisruptionBudget", "HorizontalPodAutoscaler"} {
		assert.Contains(t, applied, "\nkind: "+kind+"\n")
	}
	for _, kind := range []string{"Namespace", "ServiceAccount", "Gateway", "HTTPRoute", "PodMonitor"} {
		assert.NotContains(t, applied, "\nkind: "+kind+"\n")
	}
	assert.Equal(t, strings.Count(fresh.applied, "@sha256:"), strings.Count(applied, "@sha256:"))
	// az signs in at the cluster before it looks for images: to build them takes longer than GitHub's token is valid.
	first := func(path string) int {
		return slices.IndexFunc(r.Requests(), func(q arm.Request) bool { return strings.HasSuffix(strings.ToLower(q.Path), path) })
	}
	credentials := first("/listclusterusercredential")
	require.GreaterOrEqual(t, credentials, 0)
	assert.Greater(t, first("/oauth2/exchange"), credentials)
}

// When a rollout or a call fails, the Deployments that changed return to their revision of before, and the run fails.
func TestDeployOnly_RollsBack(t *testing.T) {
	t.Parallel()
	for name, pattern := range map[string]string{
		"rollout": "*rollout status deployment/service-a --timeout=2*",
		"probe":   "*exec deploy/service-a*",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := afterFresh(t)
			defer done(t, time.Now(), "a deployment that fails", "service-a, which changed, returns to revision 1; service-b stays; the run fails")
			got := r.script("up.sh", []string{"FAIL=" + pattern}, "--deploy-only")
			require.Error(t, got.err)
			commands := r.recorded("commands")
			assert.Contains(t, commands, "rollout undo deployment/service-a --to-revision=1 ", got.stderr)
			assert.NotContains(t, commands, "rollout undo deployment/service-b")
		})
	}
}

// A Deployment that cannot be rolled back is named, and the others are rolled back all the same. Without the revisions of before,
// nothing is deployed.
func TestDeployOnly_RollBackGoesOn(t *testing.T) {
	t.Parallel()
	r := afterFresh(t)
	defer done(t, time.Now(), "a deployment that fails, as does its rollback", "service-b returns to revision 1, and service-a is named; without revisions nothing is deployed")
	got := r.script("up.sh", []string{"FAIL=*get deployments --output*"}, "--deploy-only")
	require.Error(t, got.err)
	assert.Contains(t, lastLine(got.stderr), "nothing was deployed")
	assert.Empty(t, r.recorded("applied.yaml"))

	got = r.script("up.sh", []string{"BOTH=1", "FAIL=*deploy*/service-a*"}, "--deploy-only")
	require.Error(t, got.err)
	commands := r.recorded("commands")
	assert.Contains(t, commands, "rollout undo deployment/service-b --to-revision=1 ", got.stderr)
	assert.Contains(t, commands, "rollout status deployment/service-b --timeout=600s ", got.stderr)
	assert.Contains(t, lastLine(got.stderr), "not rolled back, see above: service-a")
}

// A cluster with another mesh than MESH is refused before anything is applied: the rest of the overlays would not fit it.
func TestDeployOnly_RefusesOtherMesh(t *testing.T) {
	t.Parallel()
	r := afterFresh(t)
	defer done(t, time.Now(), "nothing", "MESH=istio on a cluster without the add-on is refused by --deploy-only and github.sh, with the remedy")
	for script, argument := range map[string]string{"up.sh": "--deploy-only", "github.sh": "owner/repository"} {
		got := r.script(script, []string{"MESH=istio"}, argument)
		require.Error(t, got.err)
		assert.Contains(t, lastLine(got.stderr), "the cluster exists with MESH=none; set that")
	}
	assert.Empty(t, r.Changes())
	assert.Empty(t, r.recorded("applied.yaml"))
}

// A context or a cluster of kubectl that has the name, but leads elsewhere, is not replaced.
func TestUp_KeepsForeignContext(t *testing.T) {
	t.Parallel()
	r := afterFresh(t)
	if !r.hasKubectl() {
		t.Skip("skipped: kubectl is not on PATH")
	}
	defer done(t, time.Now(), "nothing", "a context of the cluster's name that leads elsewhere is refused before anything is created, and stays")
	file := filepath.Join(r.home, "kubeconfig")
	foreign := strings.ReplaceAll(string(fresh.kubeconfig), "azmk8s.io", "example.com")
	renamed := strings.ReplaceAll(foreign, "\n  name: tandem\ncurrent-context: tandem\n", "\n  name: renamed\ncurrent-context: renamed\n")
	require.Contains(t, renamed, "name: renamed")
	for name, config := range map[string]string{"context and cluster": foreign, "cluster": renamed} {
		require.NoError(t, os.WriteFile(file, []byte(config), 0o600))
		for _, argument := range []string{"--yes", "--deploy-only"} {
			got := r.script("up.sh", nil, argument)
			require.Error(t, got.err, name)
			assert.Contains(t, lastLine(got.stderr), "set AKS_CLUSTER to another name or KUBECONFIG", name)
			after, err := os.ReadFile(file)
			require.NoError(t, err)
			assert.Equal(t, config, string(after), name)
		}
	}
	assert.Empty(t, r.Changes())

	// Where the cluster does not exist, each context of its name leads elsewhere.
	empty := newRig(t, arm.Options{})
	require.NoError(t, os.WriteFile(filepath.Join(empty.home, "kubeconfig"), fresh.kubeconfig, 0o600))
	got := empty.script("up.sh", nil, "--yes")
	require.Error(t, got.err)
	assert.Contains(t, lastLine(got.stderr), "set AKS_CLUSTER to another name or KUBECONFIG")
	assert.Empty(t, empty.Changes())
}

// Where nothing exists, --deploy-only and github.sh say what to run first.
func TestDeployOnly_NeedsCluster(t *testing.T) {
	t.Parallel()
	r := newRig(t, arm.Options{})
	defer done(t, time.Now(), "nothing", "both name make aks-up")
	for script, argument := range map[string]string{"up.sh": "--deploy-only", "github.sh": "owner/repository"} {
		got := r.script(script, nil, argument)
		require.Error(t, got.err)
		assert.Contains(t, lastLine(got.stderr), "make aks-up creates it")
	}
	assert.Empty(t, r.Changes())
}
