package scripts_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// fake replaces docker, istioctl, kind, kubectl, kustomize, images.sh and crds.sh. It appends its name and arguments to $CALLS, fails
// if they match the pattern $FAIL, and otherwise prints what kind.sh reads, of a cluster where an overlay with more
// objects was applied before.
const fake = `#!/bin/sh
call="${0##*/} $*"
echo "$call" >>"$CALLS"
eval "case \$call in ($FAIL) echo 'fake: connection refused' >&2; exit 1 ;; esac"
case $call in
"kind get clusters") echo tandem ;;
images.sh*) echo localhost/tandem/service-a:dev-1 ;;
kustomize*) echo "kind: Deployment" ;;
"docker port"*) echo 127.0.0.1:28080 ;;
*" get services "*type==*) echo "${NODE_PORTS-30080}" ;;
*" get services "*) echo 30080 ;;
crds.sh*) echo /modules/gateway-api/crd.yaml ;;
*" get --filename - "*.spec.replicas*) printf 'tandem service-a 3 300\ntandem service-b 10 300\n' ;;
*" get deployments "*) echo "tandem service-a-1" ;;
*" get --filename - "*) echo "Deployment tandem service-a" ;;
*" get namespaces,"*) printf 'Deployment tandem service-a\nService tandem service-a\nNamespace tandem\n' ;;
esac
`

// runWithFakes runs kind.sh or mesh.sh in a copy of the repository where every other program is fake. It returns what the
// script printed, the calls that it made, and whether it succeeded.
func runWithFakes(t *testing.T, name, verb, fail string) (output, calls string, ok bool) {
	t.Helper()
	root := t.TempDir()
	require.NoError(t, os.MkdirAll(filepath.Join(root, "deploy/overlays/kind"), 0o750))
	files := map[string]string{
		"scripts/images.sh": fake, "scripts/crds.sh": fake, "bin/kustomize": fake,
		"path/docker": fake, "path/istioctl": fake, "path/kind": fake, "path/kubectl": fake,
	}
	for _, file := range []string{name, "cluster.sh", "rollout.sh"} {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		files["scripts/"+file] = string(text)
	}
	for path, text := range files {
		path = filepath.Join(root, path)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o750))
		require.NoError(t, os.WriteFile(path, []byte(text), 0o700))
	}
	record := filepath.Join(root, "calls")
	cmd := exec.CommandContext(t.Context(), "bash", filepath.Join(root, "scripts", name), verb)
	cmd.Env = append(os.Environ(), "PATH="+filepath.Join(root, "path")+":"+os.Getenv("PATH"),
		"KIND_CLUSTER=tandem", "OVERLAY=kind", "CALLS="+record, "FAIL="+fail)
	text, err := cmd.CombinedOutput()
	if err != nil {
		_, ended := errors.AsType[*exec.ExitError](err)
		require.True(t, ended, "%v", err)
	}
	made, readErr := os.ReadFile(record)
	require.NoError(t, readErr)
	return string(text), string(made), err == nil
}

// deploy waits for every Deployment, longer for one with more replicas, and deletes nothing.
func TestDeploy_WaitsByReplicas(t *testing.T) {
	output, calls, ok := runWithFakes(t, "kind.sh", "deploy", "none")
	require.True(t, ok, output)
	assert.Contains(t, calls, "rollout status deployment/service-a --timeout=480s")
	assert.Contains(t, calls, "rollout status deployment/service-b --timeout=900s")
	assert.NotContains(t, calls, " delete ")
}

// When a program fails, the deployment stops with an error that names what failed. Nothing is deleted, and the output
// of the failed program is not taken for an empty list.
func TestDeploy_FailedCallDeletesNothing(t *testing.T) {
	for name, tc := range map[string]struct {
		fail  string
		want  string // in the output
		after string // a later call, which must not be made
	}{
		"every read": {
			fail:  "kubectl*' get '*",
			want:  "rollout: read the Deployments that were applied",
			after: "rollout status",
		},
		"reads of manifests": {
			fail:  "kubectl*' get --filename '*",
			want:  "rollout: read the Deployments that were applied",
			after: "rollout status",
		},
		"the apply": {
			fail:  "kubectl*' apply '*",
			want:  "fake: connection refused",
			after: "rollout status",
		},
		"a rollout": {
			fail:  "*'rollout status deployment/service-a '*",
			want:  "rollout: it does not run",
			after: "docker port",
		},
		"the clusters": {
			fail:  "'kind get clusters'",
			want:  "kind: list the clusters: fake: connection refused",
			after: "kubectl",
		},
		"the images": {
			fail:  "images.sh*",
			want:  "fake: connection refused",
			after: "kubectl",
		},
		"the manifests": {
			fail:  "kustomize*",
			want:  "fake: connection refused",
			after: "kubectl",
		},
	} {
		t.Run(name, func(t *testing.T) {
			output, calls, ok := runWithFakes(t, "kind.sh", "deploy", tc.fail)
			assert.False(t, ok, "it reports success:\n%s", output)
			assert.Contains(t, output, tc.want)
			assert.NotContains(t, calls, " delete ")
			assert.NotContains(t, calls, tc.after)
		})
	}
}

// deploy prints where the page is: at the port that the cluster maps to the NodePort, or after kubectl port-forward if
// the overlay has another way in.
func TestDeploy_SaysWhereThePageIs(t *testing.T) {
	output, _, ok := runWithFakes(t, "kind.sh", "deploy", "none")
	require.True(t, ok, output)
	assert.Contains(t, output, "http://localhost:28080\n")
	assert.NotContains(t, output, "port-forward")

	t.Setenv("NODE_PORTS", "")
	output, _, ok = runWithFakes(t, "kind.sh", "deploy", "none")
	require.True(t, ok, output)
	assert.Contains(t, output, "port-forward service/service-a 8080:80\n")
	assert.Contains(t, output, "http://localhost:8080\n")
}

// A failure to list the clusters is not reported as a missing cluster.
func TestDown_FailsWithoutDocker(t *testing.T) {
	output, _, ok := runWithFakes(t, "kind.sh", "down", "'kind get clusters'")
	assert.False(t, ok)
	assert.Contains(t, output, "kind: list the clusters: fake: connection refused")
	assert.NotContains(t, strings.ToLower(output), "there is no cluster")
}
