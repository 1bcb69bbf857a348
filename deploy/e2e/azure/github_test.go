package azure

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"example.com/tandem/deploy/e2e/azure/arm"
)

// GitHub's jobs get no more than what deploying needs: to push to the one registry, a kubeconfig of the one cluster, and
// the namespace of the services. A repetition changes nothing, and down.sh deletes it all.
func TestGitHub_LeastRoles(t *testing.T) {
	t.Parallel()
	r := afterFresh(t)
	defer done(t, time.Now(), "an app registration with a federated credential and five role assignments", "subject, roles and scopes; a second run changes nothing; down deletes it")
	got := r.script("github.sh", nil, "octo/tandem")
	got.require(t)
	assert.Contains(t, got.stdout, "gh variable set AZURE_CLIENT_ID")

	credential := body(t, r.Changes(), "POST", "/federatedIdentityCredentials")
	assert.Equal(t, "repo:octo@1/tandem@2:environment:aks", at(credential, "subject"))
	assert.Equal(t, "https://token.actions.githubusercontent.com", at(credential, "issuer"))
	scopes := map[string]string{} // by role
	for _, c := range r.Changes() {
		if scope, _, isAssignment := strings.Cut(strings.ToLower(c.Path), assignments); isAssignment {
			role := at(c.Body, "properties", "roleDefinitionId").(string)
			scopes[role[strings.LastIndex(role, "/")+1:]] = strings.TrimPrefix(scope, groupPath)
		}
	}
	registry, cluster := strings.TrimPrefix(registriesPath, groupPath)+registryName(t), strings.TrimPrefix(clusterPath, groupPath)
	assert.Equal(t, map[string]string{
		"8311e382-0749-4cb8-b61a-304f252e45ec": registry,                               // AcrPush
		"acdd72a7-3385-48ef-bd42-f606fba81ae7": registry,                               // Reader
		"4abbcc35-e782-43d8-92c5-2d3f1bd2253f": cluster,                                // Azure Kubernetes Service Cluster User Role
		"a7ffa36f-339b-4b5c-8bdf-e2c188b2c0eb": cluster + "/namespaces/tandem",         // Azure Kubernetes Service RBAC Writer
		"7f6c6a51-bcf8-42ba-9220-52d62157d7db": cluster + "/namespaces/tandem-gateway", // Azure Kubernetes Service RBAC Reader
	}, scopes)

	before := len(r.Changes())
	r.script("github.sh", nil, "octo/tandem").require(t)
	assert.Len(t, r.Changes(), before, "%s", summary(r.Changes()[before:]))

	r.script("down.sh", nil, "--yes").require(t)
	assert.Empty(t, comparable(r.Resources()))
}

// A repository that turns immutable subjects on gets a new subject, in the same credential.
func TestGitHub_SubjectChanges(t *testing.T) {
	t.Parallel()
	r := afterFresh(t)
	defer done(t, time.Now(), "a federated credential, then another subject for it", "one credential, with the new subject")
	r.script("github.sh", []string{"GITHUB_SUBJECT=repo:octo/tandem:environment:aks"}, "octo/tandem").require(t)
	r.script("github.sh", nil, "octo/tandem").require(t)
	var subjects []any
	for path, resource := range r.Resources() {
		if strings.Contains(path, "/federatedidentitycredentials/") && strings.HasPrefix(path, "/v1.0/") {
			subjects = append(subjects, at(resource, "subject"))
		}
	}
	assert.Equal(t, []any{"repo:octo@1/tandem@2:environment:aks"}, subjects)
}

// --deploy-only changes nothing in Azure but the images, and applies only what the role RBAC Writer may.
func TestDeployOnly_Deploys(t *testing.T) {
	t.Parallel()
	r := afterFresh(t)
	defer done(t, time.Now(), "a deployment to the cluster that exists", "no change in Azure; no namespace and no custom resource is applied")
	got := r.script("up.sh", nil, "--deploy-only")
	got.require(t)
	assert.Empty(t, summary(r.Changes()))
	assert.NotContains(t, r.recorded("commands"), "rollout undo")
	applied := r.recorded("applied.yaml")
	for _, kind := range []string{"Deployment", "Service", "ConfigMap", "NetworkPolicy", "PodDisruptionBudget", "HorizontalPodAutoscaler", "ServiceAccount"} {
		assert.Contains(t, applied, "\nkind: "+kind+"\n")
	}
	for _, kind := range []string{"Namespace", "Gateway", "HTTPRoute", "PodMonitor"} {
		assert.NotContains(t, applied, "\nkind: "+kind+"\n")
	}
	assert.Equal(t, strings.Count(fresh.applied, "@sha256:"), strings.Count(applied, "@sha256:"))
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
			assert.Contains(t, commands, "rollout undo deployment/service-a --to-revision=1", got.stderr)
			assert.NotContains(t, commands, "rollout undo deployment/service-b")
		})
	}
}

// Where nothing exists, --deploy-only and github.sh say what to run first.
func TestGitHub_NeedsCluster(t *testing.T) {
	t.Parallel()
	r := newRig(t, arm.Options{})
	defer done(t, time.Now(), "nothing", "both name make aks-up")
	for script, argument := range map[string]string{"up.sh": "--deploy-only", "github.sh": "octo/tandem"} {
		got := r.script(script, nil, argument)
		require.Error(t, got.err)
		assert.Contains(t, lastLine(got.stderr), "make aks-up creates it")
	}
	assert.Empty(t, r.Changes())
}
