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

func TestTheServicesPortIsNotThePods(t *testing.T) {
	c := connect(t)
	defer c.keep(t)
	ip := one(c.serving(t, serviceB)).Status.PodIP
	for _, url := range []string{"http://service-b:80/health", "http://" + ip + ":8080/health"} {
		c.mayAsk(t, namespace, "deploy/"+serviceA, url)
		t.Logf("%s is answered", url)
	}
	for _, url := range []string{"http://service-b:8080/health", "http://" + ip + ":80/health"} {
		got := c.probe(namespace, "deploy/"+serviceA, url, brief)
		assert.Contains(t, []string{"timeout", "refused"}, got.class, got.words)
		t.Logf("%s fails (%s)", url, got.class)
	}
}

// The mistake of many published policies: they name the port that callers see.
func TestAPolicyForTheServicesPortBlocksTheCall(t *testing.T) {
	// A policy's own rule for ports, at either end of the call.
	rules := map[string]func(*networkingv1.NetworkPolicy) []networkingv1.NetworkPolicyPort{
		serviceA: func(p *networkingv1.NetworkPolicy) []networkingv1.NetworkPolicyPort { return p.Spec.Egress[0].Ports },
		serviceB: func(p *networkingv1.NetworkPolicy) []networkingv1.NetworkPolicyPort { return p.Spec.Ingress[0].Ports },
	}
	for _, name := range []string{serviceA, serviceB} {
		t.Run("of "+name, func(t *testing.T) {
			c := connect(t)
			defer c.keep(t)
			policies := c.NetworkingV1().NetworkPolicies(namespace)
			right, err := policies.Get(t.Context(), name, metav1.GetOptions{})
			require.NoError(t, err)
			wrong := right.DeepCopy()
			swapped := 0
			for i, port := range rules[name](wrong) {
				if port.Port.IntValue() == 8080 {
					servicePort := intstr.FromInt32(80)
					rules[name](wrong)[i].Port = &servicePort
					swapped++
				}
			}
			require.Equal(t, 1, swapped, "the policy names the pods' port")
			back := func(ctx context.Context) error {
				now, err := policies.Get(ctx, name, metav1.GetOptions{})
				if err != nil {
					return err
				}
				now.Spec = right.Spec
				_, err = policies.Update(ctx, now, metav1.UpdateOptions{})
				return err
			}
			restore(t, "policy "+name, back)
			c.mayAsk(t, namespace, "deploy/"+serviceA, urls(short)["http"])

			_, err = policies.Update(t.Context(), wrong, metav1.UpdateOptions{})
			require.NoError(t, err)
			var got asked
			eventually(t, 30*time.Second, "the wrong policy blocks nothing", func(is *assert.CollectT) {
				got = c.probe(namespace, "deploy/"+serviceA, urls(short)["http"], brief)
				assert.Equal(is, "timeout", got.class, got.words)
			})
			c.mayAsk(t, namespace, "deploy/"+serviceA, urls(short)["grpc"]) // whose port is the same at both ends
			t.Logf("with port 80 in the policy, %s fails (%s), and gRPC on 9090 goes on", urls(short)["http"], got.class)

			require.NoError(t, back(t.Context()))
			c.mayAsk(t, namespace, "deploy/"+serviceA, urls(short)["http"])
			t.Log("with port 8080 it is answered again")
		})
	}
}
