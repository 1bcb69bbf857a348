package azure

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"

	"example.com/tandem/deploy/e2e/azure/arm"
)

// kindCluster is the cluster of TANDEM_E2E_CONTEXT.
type kindCluster struct {
	t       *testing.T
	context string
	name    string
	gateway string // of the nodes' network, an address of this machine
}

// up.sh goes through to both services on a real cluster: az acr run builds the images
// with Docker and pushes them to a real registry, from which the nodes pull them by
// digest; Istio serves the gateway; a GET from here succeeds over both transports.
func TestKind_Serves(t *testing.T) {
	c := findKind(t)
	defer done(t, time.Now(), "images in a registry, both services and a gateway on kind", "pods run the digests pulled from the registry; calls over both transports from outside; down")
	c.prepare()
	registry := startRegistry(t, c.gateway)
	builder := &dockerBuilder{t: t}
	r := newRig(t, arm.Options{Kubeconfig: c.kubeconfig(), Registry: registry, Builder: builder})
	builder.host = strings.TrimPrefix(r.URL(), "https://")
	// The real kubectl and curl.
	r.environment = append(r.environment, "PATH="+strings.Join([]string{installed.server.client, filepath.Dir(installed.az), filepath.Join(installed.root, "bin"), os.Getenv("PATH")}, string(os.PathListSeparator)))
	c.trust(builder.host, registry)

	address := c.nodeAddress()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go c.assignAddress(ctx, address)
	got := r.script("up.sh", nil, "--yes")
	got.require(t)
	t.Log(got.stdout)
	assert.Contains(t, got.stdout, "http://"+address)

	images := c.kubectl("--namespace", "tandem", "get", "pods", "--selector", "app.kubernetes.io/part-of=tandem", "--output", "jsonpath={.items[*].status.containerStatuses[*].imageID}")
	for _, service := range []string{"service-a", "service-b"} {
		assert.Regexp(t, builder.host+"/tandem/"+service+"@sha256:[0-9a-f]{64}", images)
	}
	for _, transport := range []string{"http", "grpc"} {
		response, err := http.Get("http://" + address + "/api/data?via=" + transport)
		require.NoError(t, err)
		content, err := io.ReadAll(response.Body)
		require.NoError(t, err)
		require.NoError(t, response.Body.Close())
		assert.Equal(t, http.StatusOK, response.StatusCode, "%s", content)
		assert.Contains(t, string(content), fmt.Sprintf(`"transport":%q`, transport))
	}

	before := len(r.Changes())
	r.script("up.sh", nil, "--yes").require(t)
	assert.Len(t, r.Changes(), before, "repeated")
	t.Run("claims", func(t *testing.T) { c.testClaims(t, address) })
	r.script("down.sh", nil, "--yes").require(t)
	assert.Empty(t, r.Resources())
}

// testClaims runs the claims of deploy/e2e that fit the overlay, through the gateway.
func (c *kindCluster) testClaims(t *testing.T, address string) {
	cmd := exec.CommandContext(t.Context(), "make", "-C", installed.root, "e2e-aks")
	// Without the settings of the make that runs this test, such as RUN.
	cmd.Env = append(os.Environ(), "TANDEM_E2E_CONTEXT="+c.context, "TANDEM_E2E_URL=http://"+address, "RUN=", "MAKEFLAGS=")
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	require.NoError(t, err)
	assert.NotContains(t, string(out), "--- SKIP")
	assert.Contains(t, string(out), "--- PASS")
}

// findKind skips the test unless TANDEM_AZURE_KIND is set, and if there is no cluster with
// Istio, or no Docker.
func findKind(t *testing.T) *kindCluster {
	t.Helper()
	if os.Getenv("TANDEM_AZURE_KIND") == "" {
		t.Skip("skipped: it deletes both services from the kind cluster; TANDEM_AZURE_KIND=1 runs it")
	}
	c := &kindCluster{t: t, context: os.Getenv("TANDEM_E2E_CONTEXT")}
	name, isKind := strings.CutPrefix(c.context, "kind-")
	if !isKind {
		t.Skip("skipped: TANDEM_E2E_CONTEXT names no kind cluster")
	}
	c.name = name
	if out, err := c.try("get", "gatewayclass", "istio"); err != nil {
		t.Skipf("skipped: the cluster has no Istio (make kind-up istio-up): %s", out)
	}
	out, err := exec.Command("docker", "network", "inspect", "kind", "--format", "{{range .IPAM.Config}}{{.Gateway}} {{end}}").Output()
	if err != nil {
		t.Skipf("skipped: docker network inspect kind: %v", err)
	}
	for address := range strings.FieldsSeq(string(out)) {
		if ip := net.ParseIP(address); ip != nil && ip.To4() != nil {
			c.gateway = address
		}
	}
	if listener, err := net.Listen("tcp", net.JoinHostPort(c.gateway, "0")); err != nil {
		t.Skipf("skipped: the nodes cannot reach this machine: %v", err) // Docker Desktop
	} else {
		require.NoError(t, listener.Close())
	}
	return c
}

func (c *kindCluster) try(arguments ...string) (string, error) {
	out, err := exec.Command("kubectl", append([]string{"--context", c.context}, arguments...)...).CombinedOutput()
	return string(out), err
}

func (c *kindCluster) kubectl(arguments ...string) string {
	c.t.Helper()
	out, err := c.try(arguments...)
	require.NoError(c.t, err, "kubectl %s: %s", strings.Join(arguments, " "), out)
	return out
}

// prepare makes of the cluster what AKS is: with the custom resources of Azure Monitor,
// and the class of application routing. What make deploy deployed is deleted first, and
// all that the test added last.
func (c *kindCluster) prepare() {
	c.t.Helper()
	clean := func() {
		c.kubectl("delete", "namespaces", "--selector", "app.kubernetes.io/part-of=tandem", "--ignore-not-found", "--timeout=180s")
		c.kubectl("delete", "gatewayclass", "approuting-istio", "--ignore-not-found")
		c.kubectl("delete", "--ignore-not-found", "--filename", filepath.Join(installed.root, "deploy", "crds", "azmonitoring-podmonitor.yaml"))
	}
	clean()
	c.t.Cleanup(clean)
	c.kubectl("apply", "--server-side", "--filename", filepath.Join(installed.root, "deploy", "crds", "azmonitoring-podmonitor.yaml"))
	cmd := exec.Command("kubectl", "--context", c.context, "apply", "--filename", "-")
	cmd.Stdin = strings.NewReader(`{"apiVersion": "gateway.networking.k8s.io/v1", "kind": "GatewayClass", "metadata": {"name": "approuting-istio"}, "spec": {"controllerName": "istio.io/gateway-controller"}}`)
	out, err := cmd.CombinedOutput()
	require.NoError(c.t, err, "%s", out)
}

// kubeconfig returns that of the cluster, with the names that az aks get-credentials
// gives.
func (c *kindCluster) kubeconfig() []byte {
	c.t.Helper()
	all, err := clientcmd.NewDefaultClientConfigLoadingRules().Load()
	require.NoError(c.t, err)
	require.Contains(c.t, all.Contexts, c.context)
	of := all.Contexts[c.context]
	const name, user = "tandem", "clusterUser_tandem_tandem"
	one := api.NewConfig()
	one.Clusters[name], one.AuthInfos[user], one.CurrentContext = all.Clusters[of.Cluster], all.AuthInfos[of.AuthInfo], name
	one.Contexts[name] = &api.Context{Cluster: name, AuthInfo: user}
	content, err := clientcmd.Write(*one)
	require.NoError(c.t, err)
	return content
}

func (c *kindCluster) nodes() []string {
	c.t.Helper()
	return strings.Fields(c.kubectl("get", "nodes", "--output", "jsonpath={.items[*].metadata.name}"))
}

// nodeAddress returns the address of a node, which serves as that of a load balancer:
// kube-proxy serves the ports of a Service at each address in its status.
func (c *kindCluster) nodeAddress() string {
	c.t.Helper()
	return c.kubectl("get", "nodes", "--output", `jsonpath={.items[0].status.addresses[?(@.type=="InternalIP")].address}`)
}

// trust makes the nodes pull the images of a host from the registry.
func (c *kindCluster) trust(host, registry string) {
	c.t.Helper()
	// containerd 2.2 takes its default for config_path, a list of two folders, for the name of one folder.
	folders := []string{"/etc/containerd/certs.d/" + host, "/etc/containerd/certs.d:/etc/docker/certs.d/" + host}
	hosts := fmt.Sprintf("server = %q\n[host.%q]\n  capabilities = [\"pull\", \"resolve\"]\n", registry, registry)
	for _, node := range c.nodes() {
		for _, folder := range folders {
			cmd := exec.Command("docker", "exec", "--interactive", node, "sh", "-c", "mkdir -p '"+folder+"' && cat >'"+folder+"/hosts.toml'")
			cmd.Stdin = strings.NewReader(hosts)
			out, err := cmd.CombinedOutput()
			require.NoError(c.t, err, "%s", out)
			c.t.Cleanup(func() {
				out, err := exec.Command("docker", "exec", node, "rm", "-r", folder).CombinedOutput()
				assert.NoError(c.t, err, "%s", out)
			})
		}
	}
}

// assignAddress gives the gateway's Service an address, as a cloud would.
func (c *kindCluster) assignAddress(ctx context.Context, address string) {
	status, _ := json.Marshal(map[string]any{"status": map[string]any{"loadBalancer": map[string]any{"ingress": []any{map[string]any{"ip": address}}}}})
	for ctx.Err() == nil {
		name, err := c.try("--namespace", "tandem-gateway", "get", "services", "--selector", "gateway.networking.k8s.io/gateway-name=gateway", "--output", "jsonpath={.items[0].metadata.name}")
		if err == nil && name != "" {
			if _, err = c.try("--namespace", "tandem-gateway", "patch", "service", name, "--subresource=status", "--type=merge", "--patch", string(status)); err == nil {
				return
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(2 * time.Second):
		}
	}
}

// startRegistry starts the registry of scripts/tools/registry at an address of this
// machine, and returns its URL. It keeps images in memory.
func startRegistry(t *testing.T, address string) string {
	t.Helper()
	listener, err := net.Listen("tcp", net.JoinHostPort(address, "0"))
	require.NoError(t, err)
	host := listener.Addr().String()
	require.NoError(t, listener.Close()) // the registry takes the port
	configuration := filepath.Join(t.TempDir(), "registry.yaml")
	require.NoError(t, os.WriteFile(configuration, []byte("version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\nstorage: {inmemory: {}}\nhttp: {addr: '"+host+"'}\n"), 0o600))
	cmd := exec.Command(filepath.Join(installed.root, "bin", "registry"), "serve", configuration)
	cmd.Env = append(os.Environ(), "OTEL_TRACES_EXPORTER=none")
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // killed
		if t.Failed() {
			t.Logf("the registry logged:\n%s", log.String())
		}
	})
	require.Eventually(t, func() bool {
		response, err := http.Get("http://" + host + "/v2/")
		return err == nil && response.Body.Close() == nil && response.StatusCode == http.StatusOK
	}, 30*time.Second, 50*time.Millisecond, "the registry does not respond")
	return "http://" + host
}

// dockerBuilder builds with the Docker of this machine, as the agents of ACR do: without
// BuildKit, unless the step asks for it.
type dockerBuilder struct {
	t    *testing.T
	host string // login server of the registry
}

func (b *dockerBuilder) Build(folder string, environment, arguments []string, log io.Writer) error {
	return b.docker(log, folder, append([]string{"DOCKER_BUILDKIT=0"}, environment...), append([]string{"build"}, arguments...)...)
}

// Push pushes with a login of its own, through the login server, and removes the image
// from Docker.
func (b *dockerBuilder) Push(image string, log io.Writer) error {
	folder, err := os.MkdirTemp("", "docker-config")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(folder) }()
	login := fmt.Sprintf(`{"auths": {%q: {"auth": "MDAwOng="}}}`, b.host) // the registry in memory accepts any
	if err := os.WriteFile(filepath.Join(folder, "config.json"), []byte(login), 0o600); err != nil {
		return err
	}
	return errors.Join(
		b.docker(log, folder, []string{"DOCKER_CONFIG=" + folder}, "push", image),
		b.docker(log, folder, nil, "image", "rm", image),
	)
}

func (b *dockerBuilder) docker(log io.Writer, folder string, environment []string, arguments ...string) error {
	cmd := exec.Command("docker", arguments...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = folder, log, log
	cmd.Env = append(os.Environ(), environment...)
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("docker %s: %w", strings.Join(arguments, " "), err)
	}
	return nil
}
