package e2e

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"
)

const overlays = "../overlays"

// render returns the manifests of an overlay, with the images that run now.
func (c *cluster) render(t *testing.T, overlay string) string {
	t.Helper()
	return c.renderFolder(t, filepath.Join(overlays, overlay))
}

// renderFolder is render for any folder with a kustomization.yaml.
func (c *cluster) renderFolder(t *testing.T, folder string) string {
	t.Helper()
	text, _, err := c.kubectl(t.Context(), "", "kustomize", folder)
	require.NoError(t, err)
	for _, service := range services {
		text = strings.ReplaceAll(text, "localhost/tandem/"+service+":dev", c.image(t, service))
	}
	return text
}

// copyManifests copies the manifests to a temporary folder.
func copyManifests(t *testing.T) (folder string) {
	t.Helper()
	folder = t.TempDir()
	for _, name := range []string{"base", "components", "overlays"} {
		require.NoError(t, os.CopyFS(filepath.Join(folder, name), os.DirFS(filepath.Join("..", name))))
	}
	return folder
}

// renderNew is render for an overlay that is not in deploy/overlays. folder is a copy of
// the manifests.
func (c *cluster) renderNew(t *testing.T, folder, kustomization string) string {
	t.Helper()
	overlay := filepath.Join(folder, "overlays", "new")
	require.NoError(t, os.Mkdir(overlay, 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(overlay, "kustomization.yaml"), []byte(kustomization), 0o600))
	return c.renderFolder(t, overlay)
}

func parse(t *testing.T, manifests string) (objects []unstructured.Unstructured) {
	t.Helper()
	decoder := yaml.NewYAMLOrJSONDecoder(bytes.NewBufferString(manifests), 4096)
	for {
		var o unstructured.Unstructured
		err := decoder.Decode(&o)
		if errors.Is(err, io.EOF) {
			return objects
		}
		require.NoError(t, err)
		objects = append(objects, o)
	}
}

// apply is make deploy without the wait.
func (c *cluster) apply(ctx context.Context, manifests string, flags ...string) (warnings string, err error) {
	args := append([]string{"apply", "--server-side", "--force-conflicts", "--field-manager", "tandem", "--filename", "-"}, flags...)
	_, warnings, err = c.kubectl(ctx, manifests, args...)
	return warnings, err
}

// The API server accepts every overlay without warnings.
func TestOverlays_AcceptedByAPIServer(t *testing.T) {
	c := connect(t)
	defer c.saveOnFailure(t)
	entries, err := os.ReadDir(overlays)
	require.NoError(t, err)
	manifests := map[string]string{}
	for _, entry := range entries {
		manifests[entry.Name()] = c.render(t, entry.Name())
	}
	c.requireAccepted(t, manifests)
}

// The API server accepts the base with each component, and with the longest combinations
// of components, without warnings. Nothing of service-b is left in another namespace than
// its pods. (make lint checks pairs of components: an object that is valid in the longest
// combination is valid in a pair.)
func TestComponents_AcceptedByAPIServer(t *testing.T) {
	c := connect(t)
	defer c.saveOnFailure(t)
	folder := t.TempDir()
	_, err := run(t.Context(), "../../scripts/kubeconform.sh", "--render", folder)
	require.NoError(t, err)
	files, err := filepath.Glob(filepath.Join(folder, "base-with/*/rendered.yaml"))
	require.NoError(t, err)
	require.NotEmpty(t, files)
	manifests := map[string]string{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		name := filepath.Base(filepath.Dir(file))
		if strings.Count(name, "+") == 1 {
			continue
		}
		manifests[name] = string(text)
		namespaces := map[string]bool{}
		for _, o := range parse(t, string(text)) {
			if strings.HasPrefix(o.GetName(), serviceB) {
				namespaces[o.GetNamespace()] = true
			}
		}
		assert.Len(t, namespaces, 1, "%s: namespaces of the objects of service-b", name)
	}
	c.requireAccepted(t, manifests)
}

// requireAccepted applies each of the manifests in a dry run.
func (c *cluster) requireAccepted(t *testing.T, manifests map[string]string) {
	t.Helper()
	c.installCRDs(t)
	for _, name := range sortedKeys(manifests) {
		objects := parse(t, manifests[name])
		for _, o := range objects {
			if o.GetKind() == "Namespace" {
				c.ensureNamespace(t, o.GetName()) // a dry run creates none, and objects in it would be rejected
			}
		}
		t.Run(name, func(t *testing.T) {
			warnings, err := c.apply(t.Context(), manifests[name], "--dry-run=server")
			require.NoError(t, err)
			assert.Empty(t, warnings)
			t.Logf("%d objects are accepted", len(objects))
		})
	}
}

// installCRDs installs the kinds that overlays and components use, except those that the
// cluster has.
func (c *cluster) installCRDs(t *testing.T) {
	t.Helper()
	list, err := run(t.Context(), "../../scripts/crds.sh")
	require.NoError(t, err)
	var missing []string
	for file := range strings.FieldsSeq(list) {
		installed, _, err := c.kubectl(t.Context(), "", "get", "--filename", file, "--ignore-not-found", "--output", "name")
		require.NoError(t, err)
		if installed == "" {
			missing = append(missing, "--filename", file)
		}
	}
	if missing == nil {
		return
	}
	restore(t, "kinds of scripts/crds.sh", func(ctx context.Context) error {
		_, _, err := c.kubectl(ctx, "", append([]string{"delete", "--ignore-not-found"}, missing...)...)
		return err
	})
	_, _, err = c.kubectl(t.Context(), "", append([]string{"apply", "--server-side"}, missing...)...)
	require.NoError(t, err)
	_, _, err = c.kubectl(t.Context(), "", append([]string{"wait", "--for=condition=Established", "--timeout=60s"}, missing...)...)
	require.NoError(t, err)
}

func (c *cluster) ensureNamespace(t *testing.T, name string) {
	t.Helper()
	_, err := c.CoreV1().Namespaces().Get(t.Context(), name, metav1.GetOptions{})
	if !apierrors.IsNotFound(err) {
		require.NoError(t, err)
		return
	}
	_, err = c.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{testLabel: "true"}},
	}, metav1.CreateOptions{})
	require.NoError(t, err)
	restore(t, "namespace "+name, func(ctx context.Context) error { return c.deleteNamespace(ctx, name) })
}

// deleteNamespace deletes a namespace and waits until its name can be used again.
func (c *cluster) deleteNamespace(ctx context.Context, name string) error {
	_, _, err := c.kubectl(ctx, "", "delete", "namespace", name, "--ignore-not-found", "--timeout=120s")
	return err
}
