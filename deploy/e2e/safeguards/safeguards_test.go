package safeguards

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Deployment safeguards find nothing in any overlay, component or combination of
// components, and the overlays for AKS meet the other rules as well.
func TestCheck_FindsNothingInRenderings(t *testing.T) {
	folder := t.TempDir()
	output, err := exec.CommandContext(t.Context(), "../../../scripts/kubeconform.sh", "--render", folder).CombinedOutput()
	require.NoError(t, err, "render the manifests: %s", output)
	files, err := filepath.Glob(filepath.Join(folder, "*/*/rendered.yaml"))
	require.NoError(t, err)
	files = append(files, filepath.Join(folder, "base/rendered.yaml"))
	aks := 0
	for _, file := range files {
		name := filepath.Dir(strings.TrimPrefix(file, folder+"/"))
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		check := Check
		if strings.HasPrefix(name, "overlays/aks") {
			check = CheckAKS
			aks++
		}
		problems, err := check(text)
		require.NoError(t, err, name)
		assert.Empty(t, problems, name)
	}
	assert.Equal(t, 2, aks, "overlays for AKS")
	assert.Greater(t, len(files), 40)
}

// good breaks no rule.
const good = `
apiVersion: apps/v1
kind: Deployment
metadata: { name: d }
spec:
  replicas: 3
  selector: { matchLabels: { app: d } }
  template:
    metadata: { labels: { app: d } }
    spec:
      topologySpreadConstraints: [{ topologyKey: zone, maxSkew: 1, whenUnsatisfiable: ScheduleAnyway }]
      containers:
        - name: c
          image: registry:5000/c:v1
          resources: { requests: { cpu: 100m, memory: 100Mi }, limits: { memory: 100Mi } }
          livenessProbe: { httpGet: { port: http } }
          readinessProbe: { httpGet: { port: http } }
          securityContext: { readOnlyRootFilesystem: true }
---
apiVersion: v1
kind: Service
metadata: { name: s }
spec: { selector: { app: d } }
---
apiVersion: v1
kind: Service
metadata: { name: headless }
spec: { clusterIP: None, selector: { app: d, part: b } }
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: { name: p }
spec: { maxUnavailable: 1 }
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: { name: rules }
spec: { podSelector: {}, egress: [{ to: [{ podSelector: {} }], ports: [{ port: 53 }] }], ingress: [{ from: [{ podSelector: {} }] }] }
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: { name: g }
spec: { infrastructure: { parametersRef: { name: options } } }
---
apiVersion: v1
kind: ConfigMap
metadata: { name: options }
data:
  deployment: "{ spec: { template: { spec: { topologySpreadConstraints: [{ maxSkew: 1 }] } } } }"
  podDisruptionBudget: "{ spec: { minAvailable: 1 } }"
`

// Each rule finds what breaks it, and no other rule does.
func TestCheck_FindsEachProblem(t *testing.T) {
	problems, err := CheckAKS([]byte(good))
	require.NoError(t, err)
	require.Empty(t, problems)
	for name, c := range map[string]struct{ old, changed, want string }{
		"no liveness":        {"livenessProbe:", "startupProbe:", "container c of d: no livenessProbe (Ensure cluster containers"},
		"no readiness":       {"readinessProbe:", "startupProbe:", "container c of d: no readinessProbe"},
		"no requests":        {"cpu: 100m, ", "", `requests "0" of cpu, want 100m or more (Kubernetes cluster containers CPU and memory`},
		"little memory":      {"memory: 100Mi }, l", "memory: 99Mi }, l", `requests "99Mi" of memory, want 100Mi or more`},
		"low limit":          {"limits: { m", "limits: { cpu: 50m, m", "limits cpu to 50m, want 100m or more"},
		"not spread":         {"topologySpreadConstraints:", "readinessGates: [] #", "Deployment d: neither topologySpreadConstraints nor podAntiAffinity (Must Have Anti"},
		"latest":             {"c:v1", "c:latest", "image registry:5000/c:latest, want a tag other than latest, or a digest"},
		"no tag":             {"/c:v1", "/c", "image registry:5000/c, want a tag"},
		"same selectors":     {", part: b", "", "Service headless: same selector as Service s"},
		"reserved label":     {"kind: Service\nmetadata: { name: s", "kind: Service\nmetadata: { labels: { kubernetes.azure.com/mode: system }, name: s", "Service s: label kubernetes.azure.com/mode"},
		"reserved pod label": {"{ labels: { app: d", "{ labels: { kubernetes.azure.com/mode: system, app: d", "pods of Deployment d: label kubernetes.azure.com/mode"},
		"no disruption":      {"maxUnavailable: 1", "maxUnavailable: 0", "PodDisruptionBudget p: want a maxUnavailable that is not 0"},
		"minimum":            {"maxUnavailable: 1", "minAvailable: 100%", "PodDisruptionBudget p: want a maxUnavailable"},
		"writable root":      {"readOnlyRootFilesystem: true", "readOnlyRootFilesystem: false", "container c of d: no readOnlyRootFilesystem"},
		"address, egress":    {"{ to: [{ podSelector: {} }]", "{ to: [{ ipBlock: { cidr: 10.0.0.0/8 } }]", "NetworkPolicy rules: ipBlock 10.0.0.0/8"},
		"address, ingress":   {"{ from: [{ podSelector: {} }]", "{ from: [{ ipBlock: { cidr: 10.0.0.0/8 } }]", "NetworkPolicy rules: ipBlock 10.0.0.0/8"},
		"named egress":       {"{ port: 53 }", "{ port: dns }", `NetworkPolicy rules: egress to the port "dns", want its number`},
		"refused option":     {"spec: { topologySpread", "spec: { securityContext: { runAsUser: 1 }, topologySpread", "ConfigMap options: deployment: field spec.template.spec.securityContext.runAsUser"},
		"refused budget":     {"minAvailable: 1 }", "maxUnavailable: 1 }", "ConfigMap options: podDisruptionBudget: field spec.maxUnavailable"},
		"unknown option":     {"podDisruptionBudget:", "serviceAccount:", "ConfigMap options: serviceAccount: field spec.minAvailable"},
	} {
		t.Run(name, func(t *testing.T) {
			bad := strings.Replace(good, c.old, c.changed, 1)
			require.NotEqual(t, good, bad)
			problems, err := CheckAKS([]byte(bad))
			require.NoError(t, err)
			require.Len(t, problems, 1)
			assert.Contains(t, problems[0], c.want)
		})
	}
}

// A kind of workload that no rule checks is an error, not a pass.
func TestCheck_RejectsUncheckedKinds(t *testing.T) {
	_, err := Check([]byte("apiVersion: apps/v1\nkind: StatefulSet\nmetadata: { name: s }\n"))
	assert.EqualError(t, err, "StatefulSet s: the rules check only Deployments")
}
