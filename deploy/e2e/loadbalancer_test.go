package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// loadBalancerIP is what a cloud would assign to service-a: an address of TEST-NET-1.
const loadBalancerIP = "192.0.2.10"

// With overlays/kind-load-balancer, a client outside the cluster reaches service-a by
// the address of the load balancer. service-a sees the client's own address. Clients
// outside loadBalancerSourceRanges are refused, and all other ports stay closed.
func TestLoadBalancer_ReachedFromOutside(t *testing.T) {
	c := connect(t)
	defer c.saveOnFailure(t)
	c.requireKind(t)
	c.requireNoMesh(t)
	original := c.render(t, "kind")
	changed := c.render(t, "kind-load-balancer")
	restore(t, "overlay kind", func(ctx context.Context) error {
		_, err := c.apply(ctx, original)
		return err
	})
	_, err := c.apply(t.Context(), changed)
	require.NoError(t, err)
	c.assignLoadBalancer(t)

	pod := firstOf(c.readyPods(t, serviceA))
	client := c.startOutsideClient(t)
	client.route(t, loadBalancerIP, pod.Status.HostIP)
	url := "http://" + loadBalancerIP
	client.requireGets(t, url+"/", "<!doctype html>", reachTimeout)
	for _, via := range transports {
		client.requireGets(t, url+"/api/data?via="+via, fmt.Sprintf(`"transport":%q`, via), reachTimeout)
	}
	client.requireGets(t, url+"/api/stream?interval=100ms", "data: ", blockTimeout)

	t.Run("keeps the client's address", func(t *testing.T) {
		path := "/kept-" + strconv.FormatInt(time.Now().UnixNano(), 36)
		_, err := client.get(t.Context(), url+path, reachTimeout)
		require.ErrorContains(t, err, "404")
		eventually(t, 10*time.Second, "no pod on the node logged the request", func(is *assert.CollectT) {
			from, node := c.loggedRequest(is, path)
			assert.Equal(is, client.ip, from, "the address that service-a saw")
			assert.Equal(is, pod.Spec.NodeName, node, "the node whose pod served the request")
		})
	})

	t.Run("only nodes with pods report ready", func(t *testing.T) {
		service, err := c.CoreV1().Services(namespace).Get(t.Context(), serviceA, metav1.GetOptions{})
		require.NoError(t, err)
		require.NotZero(t, service.Spec.HealthCheckNodePort)
		used := map[string]bool{}
		for _, p := range c.readyPods(t, serviceA) {
			used[p.Spec.NodeName] = true
		}
		nodes, err := c.CoreV1().Nodes().List(t.Context(), metav1.ListOptions{})
		require.NoError(t, err)
		require.Less(t, len(used), len(nodes.Items), "every node has a pod of service-a")
		for _, node := range nodes.Items {
			health := httpURL(internalIP(node), int(service.Spec.HealthCheckNodePort), "/healthz")
			eventually(t, time.Minute, node.Name+" reports the wrong state", func(is *assert.CollectT) {
				_, err := client.get(t.Context(), health, blockTimeout)
				assert.Equal(is, used[node.Name], err == nil, "%v", err)
			})
		}
	})

	t.Run("other ports are closed", func(t *testing.T) {
		// The client sends its packets to the pods' nodes, which forward them to the pods.
		other := firstOf(c.readyPods(t, serviceB))
		for _, p := range []corev1.Pod{pod, other} {
			client.route(t, p.Status.PodIP, p.Status.HostIP)
		}
		client.requireGets(t, httpURL(pod.Status.PodIP, httpPort, "/livez"), "", reachTimeout)
		for what, url := range map[string]string{
			"service-a's admin port at the load balancer": httpURL(loadBalancerIP, adminPort, "/metrics"),
			"service-a's admin port at the pod":           httpURL(pod.Status.PodIP, adminPort, "/metrics"),
			"service-b's http port":                       httpURL(other.Status.PodIP, httpPort, "/livez"),
			"service-b's grpc port":                       httpURL(other.Status.PodIP, grpcPort, "/"),
			"service-b's admin port":                      httpURL(other.Status.PodIP, adminPort, "/metrics"),
		} {
			_, err := client.get(t.Context(), url, blockTimeout)
			assert.ErrorIs(t, err, errNoResponse, what)
		}
	})

	t.Run("source ranges are enforced", func(t *testing.T) {
		const everybody = "loadBalancerSourceRanges:\n  - 0.0.0.0/0"
		require.Contains(t, changed, everybody)
		for _, tc := range []struct {
			sources string
			refused bool
		}{{"203.0.113.0/24", true}, {client.ip + "/32", false}} {
			_, err := c.apply(t.Context(), strings.Replace(changed, everybody, "loadBalancerSourceRanges: ["+tc.sources+"]", 1))
			require.NoError(t, err)
			eventually(t, time.Minute, "source ranges "+tc.sources+" have no effect", func(is *assert.CollectT) {
				_, err := client.get(t.Context(), url+"/livez", blockTimeout)
				if tc.refused {
					assert.ErrorIs(is, err, errNoResponse)
				} else {
					assert.NoError(is, err)
				}
			})
			t.Logf("client %s, source ranges %s: refused %t", client.ip, tc.sources, tc.refused)
		}
	})
}

// assignLoadBalancer gives service-a's Service an address, as a cloud would.
func (c *cluster) assignLoadBalancer(t *testing.T) {
	t.Helper()
	status := fmt.Sprintf(`{"status":{"loadBalancer":{"ingress":[{"ip":%q}]}}}`, loadBalancerIP)
	_, err := c.CoreV1().Services(namespace).Patch(t.Context(), serviceA, types.MergePatchType, []byte(status), metav1.PatchOptions{}, "status")
	require.NoError(t, err)
}

// loggedRequest returns the client's address and the node of the pod of service-a that
// logged a request to the path.
func (c *cluster) loggedRequest(t tester, path string) (from, node string) {
	for name, pod := range c.readyPods(t, serviceA) {
		for line := range strings.Lines(c.recentLogs(t, name, serviceA)) {
			var entry struct{ Path, From string }
			if json.Unmarshal([]byte(line), &entry) == nil && entry.Path == path {
				host, _, err := net.SplitHostPort(entry.From)
				require.NoError(t, err)
				return host, pod.Spec.NodeName
			}
		}
	}
	return "", ""
}

// outsideClient is a container on the network of kind's nodes. It is no part of the
// cluster, as a client on the internet.
type outsideClient struct{ container, ip string }

func (c *cluster) startOutsideClient(t *testing.T) outsideClient {
	t.Helper()
	name := strings.TrimPrefix(c.context, "kind-") + "-e2e-outside"
	remove := func(ctx context.Context) error {
		_, err := run(ctx, "docker", "rm", "--force", "--volumes", name)
		return err
	}
	require.NoError(t, remove(t.Context()), "remove what a killed run has left")
	restore(t, "container "+name, remove)
	_, err := run(t.Context(), "docker", "run", "--detach", "--name", name, "--network", "kind", "--cap-add", "NET_ADMIN", "busybox:1.37", "sleep", "3600")
	require.NoError(t, err)
	ip, err := run(t.Context(), "docker", "inspect", "--format", "{{.NetworkSettings.Networks.kind.IPAddress}}", name)
	require.NoError(t, err)
	return outsideClient{container: name, ip: strings.TrimSpace(ip)}
}

// route makes the client send packets for an address to a node.
func (o outsideClient) route(t *testing.T, address, node string) {
	t.Helper()
	_, err := run(t.Context(), "docker", "exec", o.container, "ip", "route", "replace", address, "via", node)
	require.NoError(t, err)
}

// errNoResponse means that the connection was refused, or that packets were dropped.
var errNoResponse = errors.New("no response")

// get returns the body of a response, or what arrives of it within a time. Any status
// but 200 is an error.
func (o outsideClient) get(ctx context.Context, url string, within time.Duration) (string, error) {
	body, err := run(ctx, "docker", "exec", o.container, "timeout", strconv.Itoa(int(within.Seconds())), "wget", "-q", "-O", "-", url)
	exit, ended := errors.AsType[*exec.ExitError](err)
	switch timedOut := ended && exit.ExitCode() == 143; { // 128 and SIGTERM
	case timedOut && body != "":
		return body, nil
	case timedOut, ended && strings.Contains(err.Error(), "can't connect"):
		return "", fmt.Errorf("%w from %s", errNoResponse, url)
	}
	return body, err
}

func (o outsideClient) requireGets(t *testing.T, url, want string, within time.Duration) {
	t.Helper()
	eventually(t, time.Minute, "the client does not reach "+url, func(is *assert.CollectT) {
		body, err := o.get(t.Context(), url, within)
		require.NoError(is, err)
		assert.Contains(is, body, want)
	})
	t.Logf("%s reaches %s", o.ip, url)
}
