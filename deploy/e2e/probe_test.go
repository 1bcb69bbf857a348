package e2e

import (
	"context"
	"regexp"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	// reachTimeout is for probes that should succeed, however busy the machine is.
	reachTimeout = 10 * time.Second
	// blockTimeout is for probes that should be blocked, and so take all of it.
	blockTimeout = 2 * time.Second
)

// fromServiceA is the pod argument of probe for any pod of service-a.
const fromServiceA = "deploy/" + serviceA

// probeResult is the class of a probe's failure, or "ok", and its output.
type probeResult struct{ class, output string }

var probeFailure = regexp.MustCompile(`(?m)^probe: (\w+): `)

// probe requests a URL from a pod of service-a's image, by a subcommand of the
// service: the image has no shell and no curl.
func (c *cluster) probe(ns, pod, url string, timeout time.Duration) probeResult {
	ctx, cancel := context.WithTimeout(context.Background(), timeout+30*time.Second)
	defer cancel()
	out, _, err := c.kubectl(ctx, "", "--namespace", ns, "exec", pod, "--", "/service", "probe", "-timeout", timeout.String(), url)
	if err == nil {
		return probeResult{"ok", out}
	}
	output := out + err.Error()
	if found := probeFailure.FindStringSubmatch(err.Error()); found != nil {
		return probeResult{found[1], output}
	}
	return probeResult{"kubectl failed", output}
}

// requireReachable probes until it succeeds: policies and endpoints take effect a
// moment after they are changed.
func (c *cluster) requireReachable(t *testing.T, ns, pod, url string) {
	t.Helper()
	eventually(t, 30*time.Second, ns+"/"+pod+" cannot reach "+url, func(is *assert.CollectT) {
		result := c.probe(ns, pod, url, reachTimeout)
		assert.Equal(is, "ok", result.class, result.output)
	})
	t.Logf("%s/%s reaches %s", ns, pod, url)
}

// requireBlocked checks that a probe of each URL times out: a policy drops packets.
// The keys of urls describe the targets.
func (c *cluster) requireBlocked(t *testing.T, ns, pod string, urls map[string]string) {
	t.Helper()
	results := make([]probeResult, len(urls))
	var probes sync.WaitGroup
	for i, target := range sortedKeys(urls) {
		probes.Go(func() { results[i] = c.probe(ns, pod, urls[target], blockTimeout) })
	}
	probes.Wait()
	for i, target := range sortedKeys(urls) {
		assert.Equal(t, "timeout", results[i].class, "%s: %s", target, results[i].output)
		t.Logf("%s/%s to %s, %s: %s", ns, pod, target, urls[target], results[i].class)
	}
}

// The published guides check connectivity first when a call fails. The probe shows
// the address of the Service, the connection and the response.
func TestProbe_ReachesTheService(t *testing.T) {
	c := connect(t)
	defer c.saveOnFailure(t)
	service, err := c.CoreV1().Services(namespace).Get(t.Context(), serviceB, metav1.GetOptions{})
	require.NoError(t, err)
	out, _, err := c.kubectl(t.Context(), "", "--namespace", namespace, "exec", "deploy/service-a", "--", "/service", "probe", "http://service-b:80/health")
	require.NoError(t, err)
	assert.Contains(t, out, "HTTP/1.1 200 OK")
	assert.Contains(t, out, "service-b is "+service.Spec.ClusterIP+" ")
	assert.Contains(t, out, "to "+service.Spec.ClusterIP+":80 ")
	t.Logf("the Service's address is %s; the probe's output:\n%s", service.Spec.ClusterIP, out)
}
