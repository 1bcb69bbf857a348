package e2e

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// saveOnFailure writes the state of the cluster to files if the test has failed. Defer
// it: deferred calls run before the test's cleanups, which restore everything.
func (c *cluster) saveOnFailure(t *testing.T) {
	if !t.Failed() {
		return
	}
	dir := os.Getenv("E2E_ARTIFACTS")
	if dir == "" {
		dir = filepath.Join("..", "..", "out", "e2e")
	}
	dir = filepath.Join(dir, t.Name())
	if !assert.NoError(t, os.MkdirAll(dir, 0o755)) {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	// save writes the output of kubectl, its errors included.
	save := func(name string, args ...string) {
		out, errOut, _ := c.kubectl(ctx, "", args...)
		assert.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(out+errOut), 0o600))
	}
	save("pods.txt", "get", "pods,services,endpointslices,networkpolicies,horizontalpodautoscalers,poddisruptionbudgets", "--all-namespaces", "--output", "wide")
	save("nodes.txt", "describe", "nodes")
	save("events.txt", "get", "events", "--all-namespaces", "--sort-by", ".lastTimestamp")
	pods, err := c.CoreV1().Pods("").List(ctx, metav1.ListOptions{})
	if !assert.NoError(t, err) {
		return
	}
	for _, p := range pods.Items {
		if !strings.HasPrefix(p.Namespace, namespace) {
			continue
		}
		name := p.Namespace + "_" + p.Name
		save(name+".describe.txt", "describe", "pod", "--namespace", p.Namespace, p.Name)
		save(name+".log", "logs", "--namespace", p.Namespace, p.Name, "--all-containers", "--timestamps", "--tail", "5000")
		for _, status := range p.Status.ContainerStatuses {
			if status.RestartCount > 0 {
				save(name+".previous.log", "logs", "--namespace", p.Namespace, p.Name, "--container", status.Name, "--previous", "--timestamps")
			}
		}
	}
	t.Logf("logs, events and descriptions of the pods are in %s", dir)
}
