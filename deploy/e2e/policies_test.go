package e2e

import (
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// blocked wants each of the URLs to time out: a policy drops what it does not
// allow, without a word. They are asked side by side, as each takes its time.
func (c *cluster) blocked(t *testing.T, in, pod string, urls map[string]string) {
	t.Helper()
	answers := make([]asked, len(urls))
	var asking sync.WaitGroup
	for i, what := range names(urls) {
		asking.Go(func() { answers[i] = c.probe(in, pod, urls[what], brief) })
	}
	asking.Wait()
	for i, what := range names(urls) {
		assert.Equal(t, "timeout", answers[i].class, "%s: %s", what, answers[i].words)
		t.Logf("%s/%s to %s, %s: %s", in, pod, what, urls[what], answers[i].class)
	}
}

func TestAStrangerIsShutOut(t *testing.T) {
	c := connect(t)
	defer c.keep(t)
	b := one(c.serving(t, serviceB)).Status.PodIP
	doors := map[string]string{
		"the pod's http port":  "http://" + b + ":8080/health",
		"the pod's grpc port":  "grpc://" + b + ":9090",
		"the pod's admin port": "http://" + b + ":8081/metrics",
		"the Service":          urls(full)["http"],
		"the headless Service": urls(full)["grpc"],
	}
	elsewhere := c.otherNamespace(t)
	for _, stranger := range []struct{ who, namespace, name string }{
		{"in the same namespace", namespace, "stranger"},
		{"in another namespace", elsewhere, "stranger"},
		// Labels are no password: anybody may write them on pods of their own.
		{"in another namespace, labelled as service-a", elsewhere, serviceA},
	} {
		t.Run(stranger.who, func(t *testing.T) {
			pod := c.caller(t, stranger.namespace, "e2e-"+stranger.name, map[string]string{nameLabel: stranger.name})
			if stranger.namespace != namespace {
				// It is the door that is shut: this pod gets to others.
				c.mayAsk(t, elsewhere, pod, "http://"+serviceA+full+"/livez")
			}
			c.blocked(t, stranger.namespace, pod, doors)
		})
	}
}

func TestServiceAReachesOnlyServiceBAndDNS(t *testing.T) {
	c := connect(t)
	defer c.keep(t)
	service, err := c.CoreV1().Services("default").Get(t.Context(), "kubernetes", metav1.GetOptions{})
	require.NoError(t, err)
	dns, err := c.CoreV1().Pods("kube-system").List(t.Context(), metav1.ListOptions{LabelSelector: "k8s-app=kube-dns"})
	require.NoError(t, err)
	require.NotEmpty(t, dns.Items)
	as := c.serving(t, serviceA)
	require.Greater(t, len(as), 1)
	from, other, b := names(as)[0], as[names(as)[1]], one(c.serving(t, serviceB))
	elsewhere := c.otherNamespace(t)
	c.caller(t, elsewhere, "bystander", map[string]string{nameLabel: serviceB}) // the right label in the wrong place
	bystander, err := c.CoreV1().Pods(elsewhere).Get(t.Context(), "bystander", metav1.GetOptions{})
	require.NoError(t, err)

	for _, url := range []string{"http://" + b.Status.PodIP + ":8080/health", "grpc://" + b.Status.PodIP + ":9090", urls(short)["http"]} {
		c.mayAsk(t, namespace, from, url)
		t.Logf("%s/%s to %s: ok", namespace, from, url)
	}
	c.blocked(t, namespace, from, map[string]string{
		"the API server":                  "https://kubernetes.default.svc/version",
		"the API server by its address":   "https://" + service.Spec.ClusterIP + "/version",
		"service-b's admin port":          "http://" + b.Status.PodIP + ":8081/metrics",
		"another service-a":               "http://" + other.Status.PodIP + ":8080/livez",
		"a pod of another namespace":      "http://" + bystander.Status.PodIP + ":8080/livez",
		"a node's kubelet":                "https://" + c.otherNode(t, as[from].Spec.NodeName) + ":10250/healthz",
		"the DNS server's own other port": "http://" + dns.Items[0].Status.PodIP + ":9153/metrics",
	})
}

// otherNode is the address of a node that is not this one: a pod may always
// talk to its own.
func (c *cluster) otherNode(t *testing.T, own string) string {
	t.Helper()
	nodes, err := c.CoreV1().Nodes().List(t.Context(), metav1.ListOptions{})
	require.NoError(t, err)
	for _, node := range nodes.Items {
		for _, address := range node.Status.Addresses {
			if node.Name != own && address.Type == corev1.NodeInternalIP {
				return address.Address
			}
		}
	}
	require.Fail(t, "there is only one node")
	return ""
}
