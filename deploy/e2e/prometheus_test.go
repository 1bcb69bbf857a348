package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/yaml"

	"example.com/tandem/deploy/e2e/load"
)

const prometheusPort = 9090

// A Prometheus in another namespace scrapes both services. The alert TandemGRPCPinned
// fires while all gRPC calls come through the ClusterIP, and ends when they come
// through the headless name. The rules are those of components/prometheus, over shorter times.
func TestPrometheus_PinningAlertFires(t *testing.T) {
	c := connect(t)
	c.requireKind(t)
	defer c.saveOnFailure(t)
	const alert = "TandemGRPCPinned"
	pods := sortedKeys(c.readyPods(t, serviceB))
	require.Greater(t, len(pods), 1, "ready pods of service-b")
	prometheus := c.startPrometheus(t)
	eventually(t, time.Minute, "Prometheus does not scrape every pod", func(is *assert.CollectT) {
		ready := query(is, prometheus, `health_ready{container="service-b"} == 1`)
		assert.ElementsMatch(is, pods, sortedKeys(ready))
		assert.Len(is, query(is, prometheus, `health_ready{container="service-a"} == 1`), len(c.readyPods(is, serviceA)))
	})

	other := c.createNamespace(t)
	c.allowIngressFrom(t, other)
	const caller = "caller"
	c.startCaller(t, other, caller, caller, fmt.Sprintf("SERVICE_B_GRPC_TARGET=dns:///%s%s:%d", serviceB, qualified, grpcPort))
	c.requireReachable(t, other, caller, grpcURL(serviceB+qualified))
	start := time.Now()
	stop := keepCalling(t, c.forward(t, other, caller, httpPort))
	eventually(t, 90*time.Second, "the alert does not fire", func(is *assert.CollectT) {
		assert.Equal(is, "firing", alertState(is, prometheus, alert))
	})
	stop()
	t.Logf("through the ClusterIP the alert fires after %s: calls a second %v", time.Since(start).Round(time.Second), callRates(t, prometheus))

	start = time.Now()
	keepCalling(t, c.forward(t, namespace, firstOf(c.readyPods(t, serviceA)).Name, httpPort))
	// The pods may have changed since service-a's last DNS lookup.
	eventually(t, time.Minute+c.discoveryTimeout(t), "the alert does not end", func(is *assert.CollectT) {
		rates := callRates(is, prometheus)
		assert.ElementsMatch(is, pods, sortedKeys(rates))
		for pod, rate := range rates {
			assert.Greater(is, rate, 1.0, "calls a second of %s", pod)
		}
		assert.Equal(is, "inactive", alertState(is, prometheus, alert))
	})
	t.Logf("through the headless name it ends after %s: calls a second %v", time.Since(start).Round(time.Second), callRates(t, prometheus))
}

// startPrometheus starts a Prometheus that scrapes the pods of both services, in a
// namespace of its own. It returns the URL of Prometheus.
func (c *cluster) startPrometheus(t *testing.T) string {
	t.Helper()
	node := firstOf(c.readyPods(t, serviceA)).Spec.NodeName
	image := c.loadPrometheus(t, node)
	ns := c.createNamespace(t, "tandem.example.com/scrapes", "true")
	const name = "prometheus"
	_, err := c.CoreV1().ConfigMaps(ns).Create(t.Context(), &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Data:       map[string]string{"prometheus.yaml": c.scrapeConfig(t), "rules.yaml": fastRules(t)},
	}, metav1.CreateOptions{})
	require.NoError(t, err)
	now, group := int64(0), int64(65534)
	c.startPod(t, &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name},
		Spec: corev1.PodSpec{
			NodeName: node, TerminationGracePeriodSeconds: &now,
			SecurityContext: &corev1.PodSecurityContext{FSGroup: &group},
			Containers: []corev1.Container{{
				Name: name, Image: image, ImagePullPolicy: corev1.PullNever,
				Args: []string{"--config.file=/etc/prometheus/prometheus.yaml", "--storage.tsdb.path=/data"},
				ReadinessProbe: &corev1.Probe{PeriodSeconds: 1, ProbeHandler: corev1.ProbeHandler{
					HTTPGet: &corev1.HTTPGetAction{Path: "/-/ready", Port: intstr.FromInt32(prometheusPort)},
				}},
				VolumeMounts: []corev1.VolumeMount{{Name: "config", MountPath: "/etc/prometheus"}, {Name: "data", MountPath: "/data"}},
			}},
			Volumes: []corev1.Volume{
				{Name: "config", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: name}}}},
				{Name: "data", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}},
			},
		},
	})
	return c.forward(t, ns, name, prometheusPort)
}

// loadPrometheus builds the image of Debian's Prometheus and loads it onto a node.
func (c *cluster) loadPrometheus(t *testing.T, node string) (image string) {
	t.Helper()
	image = "localhost/tandem/prometheus:e2e"
	_, err := run(t.Context(), "docker", "buildx", "build", "--load", "--provenance=false", "--tag", image, "testdata/prometheus")
	require.NoError(t, err)
	// From Docker's containerd image store, kind may get an image without its contents (kind#3795). An archive has them.
	archive := filepath.Join(t.TempDir(), "prometheus.tar")
	_, err = run(t.Context(), "docker", "save", "--output", archive, image)
	require.NoError(t, err)
	_, err = run(t.Context(), "kind", "load", "image-archive", "--name", strings.TrimPrefix(c.context, "kind-"), "--nodes", node, archive)
	require.NoError(t, err)
	return image
}

// scrapeConfig returns a configuration that scrapes the admin port of all pods, with the
// labels that a PodMonitor gives them.
func (c *cluster) scrapeConfig(t *testing.T) string {
	t.Helper()
	type object = map[string]any
	var targets []object
	for _, service := range services {
		for name, pod := range c.readyPods(t, service) {
			targets = append(targets, object{
				"targets": []string{net.JoinHostPort(pod.Status.PodIP, strconv.Itoa(adminPort))},
				"labels":  object{"namespace": namespace, "pod": name, "container": service},
			})
		}
	}
	text, err := yaml.Marshal(object{
		"global":         object{"scrape_interval": "2s", "evaluation_interval": "2s"},
		"rule_files":     []string{"/etc/prometheus/rules.yaml"},
		"scrape_configs": []object{{"job_name": "tandem", "static_configs": targets}},
	})
	require.NoError(t, err)
	return string(text)
}

// fastRules returns the rules of components/prometheus with ranges of 20 s, and with
// alerts that fire after 5 s.
func fastRules(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("../components/prometheus/rules.yaml")
	require.NoError(t, err)
	fast := regexp.MustCompile(`\[\d+[mh]]`).ReplaceAll(text, []byte("[20s]"))
	fast = regexp.MustCompile(`for: \d+m`).ReplaceAll(fast, []byte("for: 5s"))
	require.NotEqual(t, string(text), string(fast))
	return string(fast)
}

// keepCalling makes gRPC calls through one pod of service-a, until stop or the end of the
// test. Failed batches are of no interest: the test waits for what Prometheus measures.
func keepCalling(t *testing.T, url string) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var calling sync.WaitGroup
	calling.Go(func() {
		for ctx.Err() == nil {
			_, _ = load.GetSpread(url, "grpc", 50)
			time.Sleep(200 * time.Millisecond)
		}
	})
	stop = func() {
		cancel()
		calling.Wait()
	}
	t.Cleanup(stop)
	return stop
}

// callRates returns the gRPC calls a second of each ready pod of service-b.
func callRates(t tester, prometheus string) map[string]float64 {
	return query(t, prometheus, "namespace_pod:grpc_server_calls_ready:rate5m")
}

// query returns the values of an expression by pod.
func query(t tester, prometheus, expression string) map[string]float64 {
	var result struct {
		Data struct {
			Result []struct {
				Metric map[string]string
				Value  [2]json.RawMessage
			}
		}
	}
	getJSON(t, prometheus+"/api/v1/query?query="+url.QueryEscape(expression), nil, &result)
	out := map[string]float64{}
	for _, r := range result.Data.Result {
		value, err := strconv.ParseFloat(strings.Trim(string(r.Value[1]), `"`), 64)
		require.NoError(t, err)
		out[r.Metric["pod"]] = value
	}
	return out
}

// alertState returns the state of an alert: inactive, pending or firing.
func alertState(t tester, prometheus, alert string) string {
	var result struct {
		Data struct {
			Groups []struct {
				Rules []struct{ Name, State string }
			}
		}
	}
	getJSON(t, prometheus+"/api/v1/rules?type=alert", nil, &result)
	for _, group := range result.Data.Groups {
		if i := slices.IndexFunc(group.Rules, func(r struct{ Name, State string }) bool { return r.Name == alert }); i >= 0 {
			return group.Rules[i].State
		}
	}
	require.Fail(t, "Prometheus has no alert "+alert)
	return ""
}
