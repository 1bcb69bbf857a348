package e2e

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// What may stand behind a Service's name: nothing, or ever more of where it is.
const (
	short     = ""
	qualified = "." + namespace
	full      = "." + namespace + ".svc.cluster.local"
	absolute  = full + "." // the resolver tries no suffixes
)

// urls of service-b under a name: HTTP by the virtual IP, gRPC by the pods'.
func urls(suffix string) map[string]string {
	return map[string]string{
		"http": "http://" + serviceB + suffix + "/health",
		"grpc": "grpc://" + headless + suffix + ":9090",
	}
}

func TestServiceBIsReachedByEachOfItsNames(t *testing.T) {
	c := connect(t)
	defer c.keep(t)
	for _, suffix := range []string{short, qualified, full, absolute} {
		for _, via := range transports {
			c.mayAsk(t, namespace, "deploy/"+serviceA, urls(suffix)[via])
			t.Logf("%s is answered", urls(suffix)[via])
		}
	}
}

func TestFromAnotherNamespaceTheShortNameIsNotFound(t *testing.T) {
	c := connect(t)
	defer c.keep(t)
	elsewhere := c.otherNamespace(t)
	c.admit(t, elsewhere)
	pod := c.caller(t, elsewhere, "caller", map[string]string{nameLabel: "caller"})
	for _, via := range transports {
		for _, suffix := range []string{qualified, full, absolute} {
			c.mayAsk(t, elsewhere, pod, urls(suffix)[via])
			t.Logf("%s is answered", urls(suffix)[via])
		}
		got := c.probe(elsewhere, pod, urls(short)[via], patience)
		assert.Equal(t, "dns", got.class, got.words)
		t.Logf("%s is not found (%s)", urls(short)[via], got.class)
	}
}

// The first thing to try when a call fails, as the published guides have it:
// for an image that has no shell, the service itself asks.
func TestTheConnectivityCheckOfTheGuidesWorks(t *testing.T) {
	c := connect(t)
	defer c.keep(t)
	service, err := c.CoreV1().Services(namespace).Get(t.Context(), serviceB, metav1.GetOptions{})
	require.NoError(t, err)
	out, _, err := c.kubectl(t.Context(), "", "--namespace", namespace, "exec", "deploy/service-a", "--", "/service-a", "probe", "http://service-b:80/health")
	require.NoError(t, err)
	assert.Contains(t, out, "HTTP/1.1 200 OK")
	assert.Contains(t, out, "service-b is "+service.Spec.ClusterIP+" ")
	assert.Contains(t, out, "to "+service.Spec.ClusterIP+":80 ")
	t.Logf("the Service's address is %s; the probe said\n%s", service.Spec.ClusterIP, out)
}
