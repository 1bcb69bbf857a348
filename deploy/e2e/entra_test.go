package e2e

import (
	"context"
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"

	"example.com/tandem/deploy/e2e/load"
)

// With overlays/kind-entra, service-b accepts service-a by the token of its
// ServiceAccount. It refuses callers that a NetworkPolicy lets in, and that have no token,
// the token of another ServiceAccount, or one for another service.
func TestEntra_OnlyServiceAMayCall(t *testing.T) {
	c := connect(t)
	defer c.saveOnFailure(t)
	c.requireNoMesh(t)
	original := c.render(t, "kind")
	changed := c.render(t, "kind-entra")
	t.Cleanup(func() { c.settle(t) })
	restore(t, "overlay kind", func(ctx context.Context) error {
		_, applyErr := c.apply(ctx, original)
		_, _, err := c.kubectl(ctx, "", "--namespace", namespace, "delete", "networkpolicy", "service-b-issuer", "--ignore-not-found")
		if applyErr != nil {
			return applyErr
		}
		return err
	})
	_, err := c.apply(t.Context(), changed)
	require.NoError(t, err)
	c.settle(t)

	for _, via := range transports {
		var got load.Spread
		eventually(t, c.discoveryTimeout(t), "service-a's calls fail over "+via, func(is *assert.CollectT) {
			var err error
			got, err = load.GetSpread(c.url, via, spreadCalls)
			require.NoError(is, err)
			assert.Empty(is, got.Errors)
			assert.ElementsMatch(is, sortedKeys(c.pods(is, serviceB)), sortedKeys(got.Pods))
		})
		t.Logf("service-a over %s: %v", via, got.Pods)
	}
	var health struct {
		Checks map[string][]struct{ Status, Output string }
	}
	getJSON(t, c.url+"/health", nil, &health)
	require.NotEmpty(t, health.Checks["token for service-b"])
	assert.Contains(t, health.Checks["token for service-b"][0].Output, "token valid until ")

	other := c.createNamespace(t)
	c.allowIngressFrom(t, other)
	for _, caller := range []struct {
		name, audience string // "" is no token
		want           map[string]string
	}{
		{"without-token", "", map[string]string{"http": "status 401", "grpc": "Unauthenticated"}},
		{"other-account", "service-b", map[string]string{"http": "status 403", "grpc": "PermissionDenied"}},
		{"other-audience", "service-c", map[string]string{"http": "status 401", "grpc": "Unauthenticated"}},
	} {
		t.Run(caller.name, func(t *testing.T) {
			pod := c.callerPod(t, other, caller.name, caller.name,
				"SERVICE_B_HTTP_URL="+httpURL(serviceB+full, servicePort, ""),
				fmt.Sprintf("SERVICE_B_GRPC_TARGET=dns:///%s%s:%d", headless, full, grpcPort))
			if caller.audience != "" {
				addToken(pod, caller.audience)
			}
			c.startPod(t, pod)
			url := c.forward(t, other, caller.name, httpPort)
			for _, via := range transports {
				var problem struct{ Class, Detail string }
				eventually(t, time.Minute, via+" is not refused", func(is *assert.CollectT) {
					status := getJSON(is, url+"/api/data?via="+via, nil, &problem)
					assert.Equal(is, http.StatusBadGateway, status)
					assert.Equal(is, "denied", problem.Class)
					assert.Contains(is, problem.Detail, caller.want[via])
				})
				t.Logf("%s: class %s: %s", via, problem.Class, problem.Detail)
			}
		})
	}
}

// addToken lets a caller's pod send a token of its own ServiceAccount to service-b.
func addToken(pod *corev1.Pod, audience string) {
	const name, folder = "token", "/var/run/secrets/test"
	lifetime := int64(3600)
	pod.Spec.Volumes = []corev1.Volume{{Name: name, VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{
		Sources: []corev1.VolumeProjection{{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{
			Path: name, Audience: audience, ExpirationSeconds: &lifetime,
		}}},
	}}}}
	container := &pod.Spec.Containers[0]
	container.VolumeMounts = []corev1.VolumeMount{{Name: name, MountPath: folder, ReadOnly: true}}
	container.Env = append(container.Env, corev1.EnvVar{Name: "SERVICE_B_TOKEN_FILE", Value: folder + "/" + name})
}
