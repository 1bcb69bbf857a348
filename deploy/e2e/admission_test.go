package e2e

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// The namespace rejects pods that do not meet the Pod Security Standard "restricted".
func TestNamespace_RejectsUnrestrictedPods(t *testing.T) {
	c := connect(t)
	defer c.saveOnFailure(t)
	yes, no, root := true, false, int64(0)
	violations := map[string]func(*corev1.PodSpec){
		"privileges": func(s *corev1.PodSpec) {
			s.Containers[0].SecurityContext.Privileged = &yes
			s.Containers[0].SecurityContext.AllowPrivilegeEscalation = nil // the API server rejects false for a privileged pod
		},
		"root": func(s *corev1.PodSpec) {
			s.SecurityContext.RunAsNonRoot, s.SecurityContext.RunAsUser = &no, &root
		},
		"the host's network": func(s *corev1.PodSpec) { s.HostNetwork = true },
		"the host's files": func(s *corev1.PodSpec) {
			s.Volumes = append(s.Volumes, corev1.Volume{Name: "host", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/"}}})
		},
		"capabilities":            func(s *corev1.PodSpec) { s.Containers[0].SecurityContext.Capabilities = nil },
		"unfiltered system calls": func(s *corev1.PodSpec) { s.SecurityContext.SeccompProfile = nil },
	}
	for _, service := range services {
		running := firstOf(c.readyPods(t, service))
		try := func(change func(*corev1.PodSpec)) error {
			p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "e2e-violation"}, Spec: *c.deployment(t, service).Spec.Template.Spec.DeepCopy()}
			change(&p.Spec)
			_, err := c.CoreV1().Pods(namespace).Create(t.Context(), p, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
			return err
		}
		require.NoError(t, try(func(*corev1.PodSpec) {}), "unchanged")
		for name, change := range violations {
			err := try(change)
			assert.True(t, apierrors.IsForbidden(err), "%s with %s: %v", service, name, err)
			assert.ErrorContains(t, err, `violates PodSecurity "restricted`, name)
		}
		t.Logf("%s is accepted unchanged, and rejected with any of %v", service, sortedKeys(violations))

		spec, container := running.Spec, running.Spec.Containers[0].SecurityContext
		assert.True(t, *spec.SecurityContext.RunAsNonRoot)
		assert.Equal(t, corev1.SeccompProfileTypeRuntimeDefault, spec.SecurityContext.SeccompProfile.Type)
		assert.False(t, *container.AllowPrivilegeEscalation)
		assert.True(t, *container.ReadOnlyRootFilesystem)
		assert.Equal(t, []corev1.Capability{"ALL"}, container.Capabilities.Drop)
		assert.Empty(t, spec.Volumes, "the token of a service account would be a volume")
	}
}
