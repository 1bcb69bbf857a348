package e2e

import (
	"bufio"
	"cmp"
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// The receiver of traces: kit/kittest/otlp/receiver in an image of its own.
const (
	receiver         = "otel-collector"
	receiverImage    = "localhost/tandem/otlp-receiver:e2e"
	otlpPort         = 4317
	receiverHTTPPort = 4318
	collectsTraces   = "tandem.example.com/collects-traces"
)

// With overlays/kind-tracing, a call from outside is one trace across the pods of both
// services, over both transports and in a stream. It reaches a receiver in another
// namespace while the NetworkPolicies are enforced.
func TestTracing_OneTracePerCall(t *testing.T) {
	c := connect(t)
	defer c.saveOnFailure(t)
	c.requireNoMesh(t)
	if !c.isKind() {
		t.Skip("loads an image of its own, which needs a cluster of kind")
	}
	ns := c.startReceiver(t)
	original := c.render(t, "kind")
	changed := c.renderNew(t, copyManifests(t), fmt.Sprintf(`
resources: [../kind-tracing]
patches:
  - target: { kind: ConfigMap, name: ^service-(a|b)$ }
    patch: |
      - { op: replace, path: /data/OTEL_EXPORTER_OTLP_ENDPOINT, value: "http://%s.%s.svc.cluster.local:%d" }
      - { op: add, path: /data/OTEL_BSP_SCHEDULE_DELAY, value: "500" }
`, receiver, ns, otlpPort))
	t.Cleanup(func() { c.settle(t) })
	restore(t, "overlay kind", func(ctx context.Context) error {
		_, applyErr := c.apply(ctx, original)
		_, _, err := c.kubectl(ctx, "", "--namespace", namespace, "delete", "networkpolicy", "service-a-traces", "service-b-traces", "--ignore-not-found")
		return cmp.Or(applyErr, err)
	})
	_, err := c.apply(t.Context(), changed)
	require.NoError(t, err)
	c.settle(t)
	spans := c.forward(t, ns, receiver, receiverHTTPPort) + "/spans?trace="

	for via, attempt := range map[string]string{"http": "HTTP GET", "grpc": "data.v1.DataService/GetData"} {
		t.Run(via, func(t *testing.T) {
			served := map[string]bool{}
			for range 6 {
				var got struct {
					ServedBy struct{ Pod string }
					Call     struct{ TraceID string }
					Data     struct{ ServedBy struct{ Pod string } }
				}
				require.Equal(t, http.StatusOK, getJSON(t, c.url+"/api/data?via="+via, nil, &got))
				trace := awaitTrace(t, spans+got.Call.TraceID, 3)
				requireChain(t, trace, "", []string{"server GET /api/data", "client " + attempt, "server " + map[string]string{"http": "GET /api/data", "grpc": attempt}[via]})
				assert.Equal(t, got.ServedBy.Pod, trace[0].Resource["k8s.pod.name"])
				assert.Equal(t, got.ServedBy.Pod, trace[1].Resource["k8s.pod.name"])
				assert.Equal(t, got.Data.ServedBy.Pod, trace[2].Resource["k8s.pod.name"])
				served[got.Data.ServedBy.Pod] = true
			}
			t.Logf("%d traces over %s, with spans of %v", 6, via, sortedKeys(served))
		})
	}
	t.Run("stream", func(t *testing.T) {
		const traceID, parent = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
		readStream(t, c.url, "00-"+traceID+"-"+parent+"-01")
		trace := awaitTrace(t, spans+traceID, 3)
		requireChain(t, trace, parent, []string{"server GET /api/stream", "client data.v1.DataService/WatchData", "server data.v1.DataService/WatchData"})
	})
}

// span is a span as the receiver shows it.
type span struct {
	ID, Parent, Name, Kind string
	Resource               map[string]string
}

// awaitTrace waits until the receiver has n spans of a trace, and returns all in the order
// in which they started.
func awaitTrace(t *testing.T, url string, n int) (trace []span) {
	t.Helper()
	eventually(t, time.Minute, "the trace does not arrive", func(is *assert.CollectT) {
		getJSON(is, url, nil, &trace)
		assert.GreaterOrEqual(is, len(trace), n)
	})
	return trace
}

// requireChain requires that each span of a trace is the parent of the next, and that
// their kinds and names are want. The nodes of kind share a clock, which orders them.
func requireChain(t *testing.T, trace []span, parent string, want []string) {
	t.Helper()
	var got []string
	for _, s := range trace {
		got = append(got, s.Kind+" "+s.Name)
		require.Equal(t, parent, s.Parent, "parent of %s in %v", s.Name, trace)
		parent = s.ID
	}
	require.Equal(t, want, got)
}

// readStream reads one event of /api/stream, and disconnects.
func readStream(t *testing.T, url, traceparent string) {
	t.Helper()
	ctx, disconnect := context.WithTimeout(t.Context(), reachTimeout)
	defer disconnect()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/api/stream?interval=100ms", nil)
	require.NoError(t, err)
	req.Header.Set("Traceparent", traceparent)
	resp, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	defer resp.Body.Close() //nolint:errcheck // the rest of the stream is not wanted
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		if lines.Text() == "event: data" {
			return
		}
	}
	require.Fail(t, "the stream ended without an event")
}

// startReceiver starts the receiver in a namespace that the services may send traces to,
// and returns the namespace.
func (c *cluster) startReceiver(t *testing.T) (ns string) {
	t.Helper()
	c.loadReceiver(t)
	ns = c.createNamespace(t, collectsTraces, "true")
	labels := map[string]string{nameLabel: receiver, testLabel: "true"}
	_, err := c.CoreV1().Services(ns).Create(t.Context(), &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: receiver, Labels: labels},
		Spec:       corev1.ServiceSpec{Selector: labels, Ports: []corev1.ServicePort{{Port: otlpPort}}},
	}, metav1.CreateOptions{})
	require.NoError(t, err)
	no, yes, user, now := false, true, int64(65532), int64(0)
	c.startPod(t, &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: receiver, Labels: labels},
		Spec: corev1.PodSpec{
			Containers: []corev1.Container{{
				Name: receiver, Image: receiverImage, ImagePullPolicy: corev1.PullNever,
				ReadinessProbe: &corev1.Probe{PeriodSeconds: 1, ProbeHandler: corev1.ProbeHandler{
					HTTPGet: &corev1.HTTPGetAction{Path: "/readyz", Port: intstr.FromInt32(receiverHTTPPort)},
				}},
			}},
			SecurityContext:              &corev1.PodSecurityContext{RunAsNonRoot: &yes, RunAsUser: &user},
			AutomountServiceAccountToken: &no, EnableServiceLinks: &no, TerminationGracePeriodSeconds: &now,
		},
	})
	return ns
}

// loadReceiver builds the receiver and loads its image into the nodes.
func (c *cluster) loadReceiver(t *testing.T) {
	t.Helper()
	nodes, err := c.CoreV1().Nodes().List(t.Context(), metav1.ListOptions{})
	require.NoError(t, err)
	folder := t.TempDir()
	build := exec.CommandContext(t.Context(), cmp.Or(os.Getenv("GO"), "go"), "build", "-o", filepath.Join(folder, "receiver"), "./kittest/otlp/receiver")
	build.Dir = "../../kit"
	build.Env = append(os.Environ(), "GOWORK=off", "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+nodes.Items[0].Status.NodeInfo.Architecture)
	output, err := build.CombinedOutput()
	require.NoError(t, err, "build the receiver: %s", output)
	require.NoError(t, os.WriteFile(filepath.Join(folder, "Dockerfile"), []byte("FROM scratch\nCOPY receiver /receiver\nENTRYPOINT [\"/receiver\"]\n"), 0o600))
	archive := filepath.Join(t.TempDir(), "image.tar")
	for _, command := range [][]string{
		{"docker", "buildx", "build", "--load", "--provenance=false", "--tag", receiverImage, folder},
		{"docker", "save", "--output", archive, receiverImage},
		{"kind", "load", "image-archive", "--name", strings.TrimPrefix(c.context, "kind-"), archive},
	} {
		_, err := run(t.Context(), command[0], command[1:]...)
		require.NoError(t, err)
	}
}
