package e2e

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// blocked wants each of the URLs to time out: a policy drops what it does not
// allow, without a word. They are asked side by side, as each takes its time.
func (c *cluster) blocked(t *testing.T, in, pod string, urls []string) {
	t.Helper()
	t.Run("group", func(t *testing.T) {
		for _, url := range urls {
			t.Run(url, func(t *testing.T) {
				t.Parallel()
				got := c.probe(in, pod, url, brief)
				assert.Equal(t, "timeout", got.class, got.words)
			})
		}
	})
}

func TestAStrangerIsShutOut(t *testing.T) {
	c := connect(t)
	defer c.keep(t)
	b := one(c.serving(t, serviceB)).Status.PodIP
	doors := []string{
		"http://" + b + ":8080/health", "grpc://" + b + ":9090", "http://" + b + ":8081/metrics",
		urls(full)["http"], urls(full)["grpc"],
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
			t.Logf("a pod %s: %d of %d ways to service-b time out", stranger.who, len(doors), len(doors))
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

	open := []string{"http://" + b.Status.PodIP + ":8080/health", "grpc://" + b.Status.PodIP + ":9090", urls(short)["http"]}
	for _, url := range open {
		c.mayAsk(t, namespace, from, url)
	}
	shut := map[string]string{
		"the API server":                  "https://kubernetes.default.svc/version",
		"the API server by its address":   "https://" + service.Spec.ClusterIP + "/version",
		"service-b's admin port":          "http://" + b.Status.PodIP + ":8081/metrics",
		"another service-a":               "http://" + other.Status.PodIP + ":8080/livez",
		"a pod of another namespace":      "http://" + bystander.Status.PodIP + ":8080/livez",
		"the node's kubelet":              fmt.Sprintf("https://%s:10250/healthz", b.Status.HostIP),
		"the DNS server's own other port": "http://" + dns.Items[0].Status.PodIP + ":9153/metrics",
	}
	var urls []string
	for _, what := range names(shut) {
		urls = append(urls, shut[what])
	}
	c.blocked(t, namespace, from, urls)
	t.Logf("service-a reaches service-b; %v time out", names(shut))
}
