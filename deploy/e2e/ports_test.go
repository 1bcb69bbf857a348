package e2e

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// The Service has port 80 and its pods have 8080. Neither has the other's port.
func TestPorts_ServiceAndPodDiffer(t *testing.T) {
	c := connect(t)
	defer c.saveOnFailure(t)
	ip := firstOf(c.readyPods(t, serviceB)).Status.PodIP
	for _, url := range []string{httpURL(serviceB, servicePort, "/health"), httpURL(ip, httpPort, "/health")} {
		c.requireReachable(t, namespace, fromServiceA, url)
	}
	for _, url := range []string{httpURL(serviceB, httpPort, "/health"), httpURL(ip, servicePort, "/health")} {
		result := c.probe(namespace, fromServiceA, url, blockTimeout)
		assert.Contains(t, []string{"timeout", "refused"}, result.class, result.output)
		t.Logf("%s fails (%s)", url, result.class)
	}
}

// A policy that names the Service's port instead of the pods' blocks the call, at
// either end of it. Many published policies have this mistake.
func TestPolicies_ServicePortBlocksCalls(t *testing.T) {
	for _, end := range []struct {
		service string
		ports   func(*networkingv1.NetworkPolicy) []networkingv1.NetworkPolicyPort
	}{
		{serviceA, func(p *networkingv1.NetworkPolicy) []networkingv1.NetworkPolicyPort { return p.Spec.Egress[0].Ports }},
		{serviceB, func(p *networkingv1.NetworkPolicy) []networkingv1.NetworkPolicyPort { return p.Spec.Ingress[0].Ports }},
	} {
		t.Run("policy of "+end.service, func(t *testing.T) {
			c := connect(t)
			defer c.saveOnFailure(t)
			policies := c.NetworkingV1().NetworkPolicies(namespace)
			right, err := policies.Get(t.Context(), end.service, metav1.GetOptions{})
			require.NoError(t, err)
			wrong := right.DeepCopy()
			replaced := 0
			for i, port := range end.ports(wrong) {
				if *port.Port == intstr.FromInt32(httpPort) || *port.Port == intstr.FromString("http") {
					number := intstr.FromInt32(servicePort)
					end.ports(wrong)[i].Port = &number
					replaced++
				}
			}
			require.Equal(t, 1, replaced, "rules for the pods' port of HTTP in the policy")
			undo := func(ctx context.Context) error {
				current, err := policies.Get(ctx, end.service, metav1.GetOptions{})
				if err != nil {
					return err
				}
				current.Spec = right.Spec
				_, err = policies.Update(ctx, current, metav1.UpdateOptions{})
				return err
			}
			restore(t, "policy "+end.service, undo)
			url := serviceURLs(short)["http"]
			c.requireReachable(t, namespace, fromServiceA, url)

			_, err = policies.Update(t.Context(), wrong, metav1.UpdateOptions{})
			require.NoError(t, err)
			eventually(t, 30*time.Second, "the wrong policy blocks nothing", func(is *assert.CollectT) {
				result := c.probe(namespace, fromServiceA, url, blockTimeout)
				assert.Equal(is, "timeout", result.class, result.output)
			})
			t.Logf("with port %d in the policy, %s times out", servicePort, url)
			c.requireReachable(t, namespace, fromServiceA, serviceURLs(short)["grpc"]) // its port is the same at both ends

			require.NoError(t, undo(t.Context()))
			c.requireReachable(t, namespace, fromServiceA, url)
		})
	}
}
