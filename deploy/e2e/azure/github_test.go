package azure

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// github.sh makes an app without a secret, with the least roles and the subject that
// GitHub names. A second run changes nothing, another subject is corrected, and down.sh
// deletes the app.
func TestGitHub_LeastRoles(t *testing.T) {
	t.Parallel()
	r := afterFresh(t)
	defer done(t, time.Now(), "app, service principal, federated credential, roles; down", "no secret; five roles on registry, cluster and namespaces; repeated without a change; nothing left")
	r.script("github.sh", nil, "owner/repository").require(t)
	t.Logf("az changed:\n%s", summary(r.Changes()))
	credential := body(t, r.Changes(), "POST", "/federatedIdentityCredentials")
	assert.Equal(t, "repo:owner@1/repository@2:environment:aks", credential["subject"])
	assert.Equal(t, []any{"api://AzureADTokenExchange"}, credential["audiences"])

	principal := any(nil)
	for path, resource := range r.Resources() {
		if strings.HasPrefix(path, "/v1.0/serviceprincipals/") {
			principal = resource["id"]
		}
		assert.Nil(t, resource["passwordCredentials"])
	}
	require.NotNil(t, principal)
	assert.Equal(t, []string{
		"/managedclusters/tandem 4abbcc35-e782-43d8-92c5-2d3f1bd2253f",                           // Cluster User
		"/managedclusters/tandem/namespaces/tandem a7ffa36f-339b-4b5c-8bdf-e2c188b2c0eb",         // RBAC Writer
		"/managedclusters/tandem/namespaces/tandem-gateway 7f6c6a51-bcf8-42ba-9220-52d62157d7db", // RBAC Reader
		"/registries/" + registryName(t) + " 8311e382-0749-4cb8-b61a-304f252e45ec",               // AcrPush
		"/registries/" + registryName(t) + " acdd72a7-3385-48ef-bd42-f606fba81ae7",               // Reader
	}, rolesOf(principal, r.Resources()))

	app := at(body(t, r.Changes(), "POST", "/servicePrincipals"), "appId")
	assert.Equal(t, map[string]any{"made-by": "tandem-aks-up", "github-app": app}, r.Resources()[groupPath]["tags"])

	before := len(r.Changes())
	r.script("github.sh", nil, "owner/repository").require(t)
	assert.Len(t, r.Changes(), before, "repeated:\n%s", summary(r.Changes()))
	r.script("github.sh", []string{"GITHUB_SUBJECT=repo:owner/repository:environment:aks"}, "owner/repository").require(t)
	require.Len(t, r.Changes(), before+1, "another subject")
	assert.Equal(t, "repo:owner/repository:environment:aks", r.Changes()[before].Body["subject"])

	r.script("down.sh", nil, "--yes").require(t)
	assert.Empty(t, slices.Collect(maps.Keys(r.Resources())))
}

// Without reviewers, everybody who may push could deploy: the environment that github.sh creates has one, and another one without
// is accepted only by --yes.
func TestGitHub_WantsReviewers(t *testing.T) {
	t.Parallel()
	r := afterFresh(t)
	defer done(t, time.Now(), "the environment in GitHub", "it has a reviewer; without reviewers, github.sh asks before it changes anything")
	file := filepath.Join(r.records, "environment.json")
	require.NoError(t, os.WriteFile(file, []byte(`{"protection_rules": [{"type": "branch_policy"}]}`), 0o600))
	got := r.script("github.sh", nil, "owner/repository")
	require.Error(t, got.err)
	assert.Contains(t, lastLine(got.stderr), "nothing was changed")
	assert.Empty(t, r.Changes())
	r.script("github.sh", nil, "--yes", "owner/repository").require(t)
	assert.NotEmpty(t, r.Changes())

	require.NoError(t, os.Remove(file))
	r.script("github.sh", nil, "owner/repository").require(t)
	assert.Contains(t, r.recorded("environment.json"), "required_reviewers")
}

// An app of the same name, which any user of the tenant may have registered, gets no roles, and down.sh does not delete it.
func TestGitHub_RefusesForeignApp(t *testing.T) {
	t.Parallel()
	r := afterFresh(t)
	defer done(t, time.Now(), "nothing; down", "an app that the group's tag does not name is refused, with the remedy, and stays")
	const app = "/v1.0/applications/99999999-9999-4999-8999-999999999999"
	r.Add(app, map[string]any{"appId": "88888888-8888-4888-8888-888888888888", "displayName": "tandem-github-tandem-11111111"})
	got := r.script("github.sh", nil, "owner/repository")
	require.Error(t, got.err)
	assert.Contains(t, lastLine(got.stderr), "az ad app delete --id 88888888-8888-4888-8888-888888888888")
	assert.Empty(t, r.Changes())

	r.script("down.sh", nil, "--yes").require(t)
	assert.Equal(t, []string{app}, slices.Collect(maps.Keys(r.Resources())))
}

// rolesOf returns the end of the scope and the role of each assignment of a principal.
func rolesOf(principal any, resources map[string]map[string]any) []string {
	var roles []string
	for path, r := range resources {
		scope, _, isAssignment := strings.Cut(path, assignments)
		if !isAssignment || at(r, "properties", "principalId") != principal {
			continue
		}
		role := at(r, "properties", "roleDefinitionId").(string)
		_, scope, _ = strings.Cut(scope, "/providers/")
		roles = append(roles, scope[strings.Index(scope, "/"):]+" "+role[strings.LastIndex(role, "/")+1:])
	}
	slices.Sort(roles)
	return roles
}
