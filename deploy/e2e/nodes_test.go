package e2e

import (
	"context"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

func (c *cluster) isKind() bool { return strings.HasPrefix(c.context, "kind-") }

// internalIP returns the address at which pods and other nodes reach a node.
func internalIP(node corev1.Node) string {
	i := slices.IndexFunc(node.Status.Addresses, func(a corev1.NodeAddress) bool { return a.Type == corev1.NodeInternalIP })
	return node.Status.Addresses[i].Address
}

// requireKind skips a test that runs commands on the nodes.
func (c *cluster) requireKind(t *testing.T) {
	if !c.isKind() {
		t.Skip("only on kind, whose nodes are containers")
	}
}

// cutOff drops all packets between a node and the others.
func (c *cluster) cutOff(ctx context.Context, node string) error {
	return c.runOnNode(ctx, node, `table inet tandem_e2e {
		chain in  { type filter hook prerouting  priority -300; iifname "eth0" drop; }
		chain out { type filter hook postrouting priority 300;  oifname "eth0" drop; }
	}`, "nft", "--file", "-")
}

// reconnect undoes cutOff. It may be called for any node: adding the table first
// makes sure that there is one to delete.
func (c *cluster) reconnect(ctx context.Context, node string) error {
	return c.runOnNode(ctx, node, "add table inet tandem_e2e; delete table inet tandem_e2e", "nft", "--file", "-")
}

// signal sends a signal to the process of a pod's container.
func (c *cluster) signal(ctx context.Context, pod corev1.Pod, signal string) error {
	id := strings.TrimPrefix(pod.Status.ContainerStatuses[0].ContainerID, "containerd://")
	return c.runOnNode(ctx, pod.Spec.NodeName, "", "ctr", "--namespace", "k8s.io", "tasks", "kill", "--signal", signal, id)
}

// runOnNode runs a command on a node of kind, which is a container.
func (c *cluster) runOnNode(ctx context.Context, node, stdin string, command ...string) error {
	cmd := exec.CommandContext(ctx, "docker", append([]string{"exec", "--interactive", node}, command...)...)
	cmd.Stdin = strings.NewReader(stdin)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %s: %w\n%s", node, strings.Join(command, " "), err, out)
	}
	return nil
}
