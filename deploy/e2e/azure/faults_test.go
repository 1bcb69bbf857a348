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

const (
	group       = `/resourcegroups/tandem$`
	registries  = `/registries/[^/]+$`
	workspaces  = `/workspaces/[^/]+$`
	clusters    = `/managedclusters/tandem$`
	assignment  = `/roleassignments/`
	deployments = `/deployments/[^/]+$`
	permissions = `/permissions$`
)

// Each failure ends up.sh with one line that names the remedy.
func TestUp_FaultsNameTheRemedy(t *testing.T) {
	for name, tc := range map[string]struct {
		after    bool // the fresh run, less what matches missing
		missing  string
		settings []string
		fault    arm.Fault
		prepare  func(*rig)
		want     string // in the last line
		changes  int    // made before the failure, at most
	}{
		"not logged in": {
			prepare: func(r *rig) { assert.NoError(r.t, os.Remove(filepath.Join(r.Configuration(), "azureProfile.json"))) },
			want:    "run az login",
		},
		"login expired": {
			fault: arm.Fault{Path: "/providers$", Status: http.StatusUnauthorized, Code: "ExpiredAuthenticationToken", Message: "The access token expiry UTC time is earlier than current UTC time."},
			want:  "run az login",
		},
		"may not assign roles": {
			prepare: func(r *rig) { r.DemoteCaller() },
			want:    `"Role Based Access Control Administrator"`,
		},
		"403 on a role assignment": {
			after: true, missing: assignment,
			fault: arm.Fault{Method: http.MethodPut, Path: assignment, Status: http.StatusForbidden, Code: "AuthorizationFailed",
				Message: "The client 'x' with object id 'x' does not have authorization to perform action 'Microsoft.Authorization/roleAssignments/write' over scope '/s' or the scope is invalid. If access was recently granted, please refresh your credentials."},
			want: `"Role Based Access Control Administrator"`, changes: 1,
		},
		"registry's name taken": {
			settings: []string{"AKS_REGISTRY=othersregistry"},
			prepare:  func(r *rig) { r.TakeRegistryName("othersregistry") },
			want:     "set AKS_REGISTRY", changes: 1,
		},
		"name taken meanwhile": {
			fault: arm.Fault{Method: http.MethodPut, Path: registries, Status: http.StatusConflict, Code: "AlreadyInUse",
				Message: "The registry DNS name x.azurecr.io is already in use. You can check if the name is already claimed using following API: https://docs.microsoft.com/en-us/rest/api/containerregistry/registries/checknameavailability"},
			want: "set AKS_REGISTRY", changes: 2,
		},
		"quota of vCPUs": {
			prepare: func(r *rig) { r.SetQuota(5) },
			want:    "quota",
		},
		"quota of a family": {
			after: true, missing: clusters,
			fault: arm.Fault{Method: http.MethodPut, Path: clusters, Status: http.StatusBadRequest, Code: "ErrCode_InsufficientVCPUQuota",
				Message: "Insufficient vcpu quota requested 6, remaining 0 for family standardDSv5Family for region eastus2."},
			want: "quota", changes: 2,
		},
		"QuotaExceeded": {
			after: true, missing: workspaces,
			fault: arm.Fault{Method: http.MethodPut, Path: workspaces, Status: http.StatusConflict, Code: "QuotaExceeded",
				Message: "Operation could not be completed as it results in exceeding approved quota."},
			want: "quota", changes: 1,
		},
		"provider unregistered meanwhile": {
			after: true, missing: workspaces,
			fault: arm.Fault{Method: http.MethodPut, Path: workspaces, Status: http.StatusConflict, Code: "MissingSubscriptionRegistration",
				Message: "The subscription is not registered to use namespace 'Microsoft.OperationalInsights'. See https://aka.ms/rps-not-found for how to register subscriptions."},
			want: "repeat make aks-up", changes: 4,
		},
		"500 in the middle": {
			after: true, missing: workspaces,
			fault: arm.Fault{Method: http.MethodPut, Path: workspaces, Status: http.StatusInternalServerError, Code: "InternalServerError", Message: "An internal error occurred."},
			want:  "it goes on where it stopped", changes: 8,
		},
		"operation ends Failed": {
			after: true, missing: clusters,
			fault: arm.Fault{Method: http.MethodPut, Path: clusters, Code: "ReconcileVNetError", Message: "The virtual network cannot be changed."},
			want:  "it goes on where it stopped", changes: 2,
		},
		"another mesh": {
			after: true, settings: []string{"MESH=istio"},
			want: "the cluster exists with MESH=none",
		},
		"foreign group": {
			prepare: func(r *rig) {
				r.Add("/subscriptions/"+arm.Subscription+"/resourceGroups/tandem", map[string]any{"location": "eastus2"})
			},
			want: "AKS_GROUP",
		},
	} {
		t.Run(strings.ReplaceAll(name, " ", "_"), func(t *testing.T) {
			t.Parallel()
			var r *rig
			if tc.after {
				r = afterFresh(t)
				if tc.missing != "" {
					r.forget(tc.missing)
				}
			} else {
				r = newRig(t, arm.Options{})
			}
			defer done(t, time.Now(), "the fault", "the last line names the remedy: "+tc.want)
			if tc.fault.Path != "" {
				r.Inject(tc.fault)
			}
			if tc.prepare != nil {
				tc.prepare(r)
			}
			got := r.script("up.sh", tc.settings, "--yes")
			require.Error(t, got.err, "%s", got.stderr)
			line := lastLine(got.stderr)
			assert.True(t, strings.HasPrefix(line, "aks-up: "), "%s", got.stderr)
			assert.Contains(t, line, tc.want, "%s", got.stderr)
			assert.NotContains(t, got.stderr, "Traceback")
			assert.LessOrEqual(t, len(r.Changes()), tc.changes, "%s", summary(r.Changes()))
			t.Log(line)
		})
	}
}

// forget deletes the resources that match, as if somebody had deleted them. The context of a cluster goes with it.
func (r *rig) forget(pattern string) {
	r.t.Helper()
	r.Forget(pattern)
	if r.Resources()[clusterPath] == nil {
		require.NoError(r.t, os.Remove(filepath.Join(r.home, "kubeconfig")))
	}
}

func lastLine(of string) string {
	of = strings.TrimSpace(of)
	return of[strings.LastIndex(of, "\n")+1:]
}

// az retries a request that is throttled, after the time that Azure names, so up.sh goes
// on.
func TestUp_ThrottledGoesOn(t *testing.T) {
	t.Parallel()
	r := afterFresh(t)
	defer done(t, time.Now(), "a workspace, after a 429 with Retry-After: 1", "az retried, and the run ended well")
	r.Forget(workspaces)
	r.Inject(arm.Fault{Method: http.MethodPut, Path: workspaces, Times: 1, Status: http.StatusTooManyRequests, Code: "TooManyRequests",
		Message: "The request is being throttled.", Header: map[string]string{"Retry-After": "1"}})
	r.script("up.sh", nil, "--yes").require(t)
	var statuses []int
	for _, c := range r.Changes() {
		statuses = append(statuses, c.Status)
	}
	assert.Equal(t, []int{http.StatusTooManyRequests, http.StatusCreated}, statuses)
}

// A cluster whose last operation failed is reconciled by the next run.
func TestUp_FailedClusterReconciled(t *testing.T) {
	t.Parallel()
	r := afterFresh(t)
	defer done(t, time.Now(), "the cluster, after an operation that ended Failed", "the next run reconciles it")
	r.Inject(arm.Fault{Method: http.MethodPut, Path: clusters, Times: 1, Code: "ReconcileVNetError", Message: "The virtual network cannot be changed."})
	r.forget(clusters)
	require.Error(t, r.script("up.sh", nil, "--yes").err)
	require.Equal(t, "Failed", at(r.Resources()[clusterPath], "properties", "provisioningState"))
	r.script("up.sh", nil, "--yes").require(t)
	assert.Equal(t, states(fresh.resources), states(r.Resources()))
}

// A deployment of the alert rules that failed is repeated by the next run.
func TestUp_FailedRulesRepeated(t *testing.T) {
	t.Parallel()
	r := afterFresh(t)
	defer done(t, time.Now(), "the alert rules, after a deployment that ended Failed", "the next run deploys them again")
	r.Forget(deployments)
	r.Inject(arm.Fault{Method: http.MethodPut, Path: deployments, Times: 1, Code: "DeploymentFailed", Message: "At least one resource deployment operation failed."})
	require.Error(t, r.script("up.sh", nil, "--yes").err)
	r.script("up.sh", nil, "--yes").require(t)
	assert.Equal(t, states(fresh.resources), states(r.Resources()))
}

// A tool that is missing or too old is named, with how to get it. Nothing is asked.
func TestUp_ToolsMissing(t *testing.T) {
	t.Parallel()
	r := newRig(t, arm.Options{})
	defer done(t, time.Now(), "nothing", "az missing, az too old and kubelogin missing each have a line with the remedy")
	old := filepath.Join(r.home, "old")
	require.NoError(t, os.MkdirAll(old, 0o750))
	require.NoError(t, os.WriteFile(filepath.Join(old, "az"), []byte("#!/bin/sh\necho 2.80.0\n"), 0o700))
	for name, tc := range map[string]struct{ path, want string }{
		"kubelogin": {without(t, r, "kubelogin"), "az aks install-cli"},
		"az":        {without(t, r, "az"), "install azure-cli"},
		"old az":    {old + string(os.PathListSeparator) + without(t, r, "none"), "az upgrade"},
	} {
		got := r.script("up.sh", []string{"PATH=" + tc.path}, "--yes")
		require.Error(t, got.err, name)
		assert.Contains(t, lastLine(got.stderr), tc.want, name)
	}
	assert.Empty(t, r.Requests())
}

// without returns a PATH of one folder, with links to all programs of the rig's PATH but
// one.
func without(t *testing.T, r *rig, missing string) string {
	t.Helper()
	folder := filepath.Join(r.home, "without-"+missing)
	require.NoError(t, os.MkdirAll(folder, 0o750))
	for _, setting := range r.environment {
		path, found := strings.CutPrefix(setting, "PATH=")
		if !found {
			continue
		}
		for _, from := range filepath.SplitList(path) {
			entries, _ := os.ReadDir(from) // PATH may name folders that are not there
			for _, entry := range entries {
				if entry.Name() != missing {
					_ = os.Symlink(filepath.Join(from, entry.Name()), filepath.Join(folder, entry.Name())) // the first one stays
				}
			}
		}
	}
	return folder
}
