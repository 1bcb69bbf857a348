package scripts_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// copyServices copies the services, and all that check-services.sh compares with them, to a new folder.
func copyServices(t *testing.T) (root string) {
	t.Helper()
	root = t.TempDir()
	for _, folder := range []string{"deploy/base", "service-a", "service-b"} {
		require.NoError(t, os.CopyFS(filepath.Join(root, folder), os.DirFS(filepath.Join("..", folder))))
	}
	require.NoError(t, os.Mkdir(filepath.Join(root, "scripts"), 0o750))
	for _, file := range []string{"go.work", "docker-compose.yaml", "scripts/services.sh", "scripts/check-services.sh"} {
		text, err := os.ReadFile(filepath.Join("..", file))
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(root, file), text, 0o700))
	}
	return root
}

// replaceInCopy replaces the first occurrence of from in a file, which must have it.
func replaceInCopy(t *testing.T, file, from, to string) {
	t.Helper()
	text, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Contains(t, string(text), from)
	require.NoError(t, os.WriteFile(file, []byte(strings.Replace(string(text), from, to, 1)), 0o600))
}

// runInCopy runs a script of root, and returns what it printed and whether it succeeded.
func runInCopy(t *testing.T, root, script string) (output string, ok bool) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "bash", filepath.Join(root, "scripts", script))
	cmd.Env = append(os.Environ(), minimalTools(t)...)
	text, err := cmd.CombinedOutput()
	return string(text), err == nil
}

func TestServices_PrintsModulesWithMain(t *testing.T) {
	root := copyServices(t)
	output, ok := runInCopy(t, root, "services.sh")
	assert.True(t, ok, output)
	assert.Equal(t, "service-a\nservice-b\n", output)

	require.NoError(t, os.WriteFile(filepath.Join(root, "go.work"), []byte("go 1.26.0\n\nuse ./service-b // the callee\n"), 0o600))
	output, ok = runInCopy(t, root, "services.sh")
	assert.True(t, ok, output)
	assert.Equal(t, "service-b\n", output)
}

// Nothing is reported for the repository as it is.
func TestCheckServices_PassesForRepository(t *testing.T) {
	output, ok := runInCopy(t, copyServices(t), "check-services.sh")
	assert.True(t, ok, output)
	assert.Empty(t, output)
}

// A service that is missing in one place is reported with the file and what to change there, and so is an entry
// without a service.
func TestCheckServices_NamesMissingEntry(t *testing.T) {
	const folder = "deploy/base/service-b/"
	for name, tc := range map[string]struct {
		file     string // is changed: from becomes to
		from, to string
		want     string // a line of the output
	}{
		"not in go.work": {
			file: "go.work", from: "\t./service-b\n",
			want: "go.work: add ./service-b",
		},
		"not in Compose": {
			file: "docker-compose.yaml", from: "\n  service-b:\n    <<", to: "\n  service-c:\n    <<",
			want: "docker-compose.yaml: add the service service-b",
		},
		"another service's image in Compose": {
			file: "docker-compose.yaml", from: "SERVICE: service-b", to: "SERVICE: service-a",
			want: "docker-compose.yaml: add the build argument SERVICE: service-b to the service service-b",
		},
		"no such service in Compose": {
			file: "docker-compose.yaml", from: "SERVICE: service-b", to: "SERVICE: service-c",
			want: "docker-compose.yaml: remove service-c: it is not a service of go.work",
		},
		"not in the base": {
			file: "deploy/base/kustomization.yaml", from: "  - service-b",
			want: "deploy/base/kustomization.yaml: add the resource service-b",
		},
		"no such service in the base": {
			file: "deploy/base/kustomization.yaml", from: "  - service-b", to: "  - service-b\n  - service-c",
			want: "deploy/base/kustomization.yaml: remove service-c: it is not a service of go.work",
		},
		"no Deployment": {
			file: folder + "kustomization.yaml", from: "  - deployment.yaml\n",
			want: folder + "kustomization.yaml: add a file with the Deployment service-b to resources",
		},
		"no Service": {
			file: folder + "service.yaml", from: "  name: service-b\n", to: "  name: b\n",
			want: folder + "kustomization.yaml: add a file with the Service service-b to resources",
		},
		"no ServiceAccount": {
			file: folder + "serviceaccount.yaml", from: "name: service-b", to: "name: service-a",
			want: folder + "kustomization.yaml: add a file with the ServiceAccount service-b to resources",
		},
		"no PodDisruptionBudget": {
			file: folder + "kustomization.yaml", from: "  - poddisruptionbudget.yaml\n",
			want: folder + "kustomization.yaml: add a file with the PodDisruptionBudget service-b to resources",
		},
		"no NetworkPolicy": {
			file: folder + "kustomization.yaml", from: "  - networkpolicy.yaml\n",
			want: folder + "kustomization.yaml: add a file with the NetworkPolicy service-b to resources",
		},
		"no settings": {
			file: folder + "kustomization.yaml", from: "{ name: service-b,", to: "{ name: service-a,",
			want: folder + "kustomization.yaml: add the ConfigMap service-b to configMapGenerator",
		},
		"a file that does not exist": {
			file: folder + "kustomization.yaml", from: "  - service.yaml\n", to: "  - service.yaml\n  - more.yaml\n",
			want: folder + "more.yaml: add this file, or remove it from " + folder + "kustomization.yaml",
		},
		"another service's image": {
			file: folder + "deployment.yaml", from: "tandem/service-b:dev", to: "tandem/service-a:dev",
			want: "deploy/base/service-b: set the image of the Deployment to localhost/tandem/service-b:dev",
		},
		"import of another service": {
			file: "service-b/main.go", from: "import (\n", to: "import (\n\ta \"example.com/tandem/service-a/internal/api\"\n",
			want: "remove the import: services call each other over the network only",
		},
	} {
		t.Run(name, func(t *testing.T) {
			root := copyServices(t)
			replaceInCopy(t, filepath.Join(root, tc.file), tc.from, tc.to)
			output, ok := runInCopy(t, root, "check-services.sh")
			assert.False(t, ok, "it reports success:\n%s", output)
			assert.Contains(t, output, tc.want+"\n")
		})
	}
}

// A service without any manifests is reported by the folder that is missing.
func TestCheckServices_NamesMissingFolder(t *testing.T) {
	root := copyServices(t)
	require.NoError(t, os.RemoveAll(filepath.Join(root, "deploy/base/service-b")))
	output, ok := runInCopy(t, root, "check-services.sh")
	assert.False(t, ok, "it reports success:\n%s", output)
	assert.Contains(t, output, "deploy/base/service-b/kustomization.yaml: add this file and the manifests of service-b")
}
