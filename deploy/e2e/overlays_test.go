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
func (c *cluster) render(t *testing.T, overlay string) (text string, objects []unstructured.Unstructured) {
	t.Helper()
	text, _, err := c.kubectl(t.Context(), "", "kustomize", filepath.Join(overlays, overlay))
	require.NoError(t, err)
	for _, service := range services {
		text = strings.ReplaceAll(text, "localhost/tandem/"+service+":dev", c.image(t, service))
	}
	decoder := yaml.NewYAMLOrJSONDecoder(bytes.NewBufferString(text), 4096)
	for {
		var o unstructured.Unstructured
		err := decoder.Decode(&o)
		if errors.Is(err, io.EOF) {
			return text, objects
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
	c.installCRDs(t)
	entries, err := os.ReadDir(overlays)
	require.NoError(t, err)
	for _, entry := range entries {
		t.Run(entry.Name(), func(t *testing.T) {
			manifests, objects := c.render(t, entry.Name())
			for _, o := range objects {
				if o.GetKind() == "Namespace" {
					c.ensureNamespace(t, o.GetName()) // a dry run creates none, and objects in it would be rejected
				}
			}
			warnings, err := c.apply(t.Context(), manifests, "--dry-run=server")
			require.NoError(t, err)
			assert.Empty(t, warnings)
			t.Logf("%d objects are accepted", len(objects))
		})
	}
}

// installCRDs installs the kinds of deploy/crds, which some overlays use.
func (c *cluster) installCRDs(t *testing.T) {
	t.Helper()
	const crds = "../crds"
	installed, _, err := c.kubectl(t.Context(), "", "get", "--filename", crds, "--ignore-not-found", "--output", "name")
	require.NoError(t, err)
	if installed != "" {
		return
	}
	restore(t, "kinds of deploy/crds", func(ctx context.Context) error {
		_, _, err := c.kubectl(ctx, "", "delete", "--filename", crds, "--ignore-not-found")
		return err
	})
	_, _, err = c.kubectl(t.Context(), "", "apply", "--server-side", "--filename", crds)
	require.NoError(t, err)
	_, _, err = c.kubectl(t.Context(), "", "wait", "--for=condition=Established", "--filename", crds, "--timeout=60s")
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
