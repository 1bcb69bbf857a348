// Package safeguards checks manifests against what AKS refuses or changes when they are
// applied: its deployment safeguards, which AKS Automatic enforces, and what the overlays
// for AKS need besides. It needs no cluster.
//
// The rules follow Microsoft's documentation. They were not compared with a cluster.
package safeguards

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/yaml"
)

// Where the rules come from.
const (
	pageOfSafeguards = "learn.microsoft.com/azure/aks/deployment-safeguards"
	pageOfGateways   = "learn.microsoft.com/azure/aks/istio-gateway-api#resource-customization-allowlist"
	initiative       = "Azure/azure-policy: policySetDefinitions/Kubernetes/AKS_Safeguards.json"
)

// rule is one policy. check returns what breaks it.
type rule struct {
	policy string // its name at Microsoft
	source string
	check  func(manifests) []string
}

// safeguards are the policies of the deployment safeguards that concern kinds of this
// repository. The others are about nodes, their taints, and storage classes.
var safeguards = []rule{
	{"Ensure cluster containers have readiness or liveness probes configured", pageOfSafeguards, haveProbes},
	{"Kubernetes cluster containers CPU and memory resource requests must be defined", pageOfSafeguards + "#resource-requests-mutator", haveRequests},
	{"Must Have Anti Affinity Rules or topologySpreadConstraintsSet", pageOfSafeguards + "#anti-affinity-and-topology-spread-mutator", areSpread},
	{"Kubernetes cluster container images should not include latest image tag", pageOfSafeguards, haveTags},
	{"Kubernetes cluster services should use unique selectors", pageOfSafeguards, haveUniqueSelectors},
	{"No AKS Specific Labels", pageOfSafeguards, haveNoReservedLabels},
	{"disallowedBadPodDisruptionBudgets", initiative, allowDisruptions},
}

// onAKS are the rules for overlays of AKS only.
var onAKS = []rule{
	{"Kubernetes cluster containers should run with a read only root file system", "learn.microsoft.com/azure/aks/policy-reference", haveReadOnlyRoots},
	{"ipBlock matches neither pods nor nodes", "learn.microsoft.com/azure/aks/azure-cni-powered-by-cilium", nameNoAddresses},
	{"in egress, port names are ambiguous if pods of other namespaces use them, too", "github.com/cilium/cilium/issues/30003", egressHasNumbers},
	{"Resource customization allowlist", pageOfGateways, haveAllowedOptions},
}

// Check returns what AKS deployment safeguards find in manifests, one line each.
func Check(manifests []byte) (problems []string, err error) { return check(manifests, safeguards) }

// CheckAKS is Check with the rules for overlays of AKS.
func CheckAKS(manifests []byte) (problems []string, err error) {
	return check(manifests, append(append([]rule{}, safeguards...), onAKS...))
}

func check(text []byte, rules []rule) (problems []string, err error) {
	m, err := parse(text)
	if err != nil {
		return nil, err
	}
	for _, r := range rules {
		for _, broken := range r.check(m) {
			problems = append(problems, fmt.Sprintf("%s (%s; %s)", broken, r.policy, r.source))
		}
	}
	return problems, nil
}

// manifests are the objects of one rendering.
type manifests struct {
	all         []unstructured.Unstructured
	deployments []appsv1.Deployment
	services    []corev1.Service
	budgets     []policyv1.PodDisruptionBudget
	policies    []networkingv1.NetworkPolicy
	options     []corev1.ConfigMap // of Gateways
}

func parse(text []byte) (m manifests, err error) {
	decoder := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(text), 4096)
	optionsOf := map[string]bool{}
	var configMaps []corev1.ConfigMap
	for {
		var o unstructured.Unstructured
		if err := decoder.Decode(&o); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return m, err
		}
		m.all = append(m.all, o)
		switch o.GetKind() {
		case "Deployment":
			m.deployments, err = appendAs(m.deployments, o)
		case "Service":
			m.services, err = appendAs(m.services, o)
		case "PodDisruptionBudget":
			m.budgets, err = appendAs(m.budgets, o)
		case "NetworkPolicy":
			m.policies, err = appendAs(m.policies, o)
		case "ConfigMap":
			configMaps, err = appendAs(configMaps, o)
		case "Gateway":
			name, _, _ := unstructured.NestedString(o.Object, "spec", "infrastructure", "parametersRef", "name")
			optionsOf[o.GetNamespace()+"/"+name] = true
		case "CronJob", "DaemonSet", "Job", "Pod", "ReplicaSet", "StatefulSet":
			err = errors.New("the rules check only Deployments")
		}
		if err != nil {
			return m, fmt.Errorf("%s %s: %w", o.GetKind(), o.GetName(), err)
		}
	}
	for _, c := range configMaps {
		if optionsOf[c.Namespace+"/"+c.Name] {
			m.options = append(m.options, c)
		}
	}
	return m, nil
}

func appendAs[T any](list []T, o unstructured.Unstructured) ([]T, error) {
	var typed T
	err := runtime.DefaultUnstructuredConverter.FromUnstructuredWithValidation(o.Object, &typed, true)
	return append(list, typed), err
}

// eachContainer calls visit for the containers of all Deployments and returns what visit
// finds, with the name in front.
func (m manifests) eachContainer(visit func(corev1.Container) []string) (broken []string) {
	for _, d := range m.deployments {
		spec := d.Spec.Template.Spec
		for _, c := range append(append([]corev1.Container{}, spec.InitContainers...), spec.Containers...) {
			for _, what := range visit(c) {
				broken = append(broken, fmt.Sprintf("container %s of %s: %s", c.Name, d.Name, what))
			}
		}
	}
	return broken
}

func haveProbes(m manifests) []string {
	return m.eachContainer(func(c corev1.Container) (broken []string) {
		if c.LivenessProbe == nil {
			broken = append(broken, "no livenessProbe")
		}
		if c.ReadinessProbe == nil {
			broken = append(broken, "no readinessProbe")
		}
		return broken
	})
}

// haveRequests finds what the mutator would set or raise: the pods would differ from the
// manifest.
func haveRequests(m manifests) []string {
	return m.eachContainer(func(c corev1.Container) (broken []string) {
		for _, least := range []struct {
			name  corev1.ResourceName
			value string
		}{{corev1.ResourceCPU, "100m"}, {corev1.ResourceMemory, "100Mi"}} {
			want := resource.MustParse(least.value)
			request, isSet := c.Resources.Requests[least.name]
			if !isSet || request.Cmp(want) < 0 {
				broken = append(broken, fmt.Sprintf("requests %q of %s, want %s or more", request.String(), least.name, least.value))
			}
			if limit, isSet := c.Resources.Limits[least.name]; isSet && limit.Cmp(want) < 0 {
				broken = append(broken, fmt.Sprintf("limits %s to %s, want %s or more", least.name, limit.String(), least.value))
			}
		}
		return broken
	})
}

func areSpread(m manifests) (broken []string) {
	for _, d := range m.deployments {
		// Without replicas an autoscaler sets them.
		if d.Spec.Replicas != nil && *d.Spec.Replicas < 2 {
			continue
		}
		spec := d.Spec.Template.Spec
		if len(spec.TopologySpreadConstraints) == 0 && (spec.Affinity == nil || spec.Affinity.PodAntiAffinity == nil) {
			broken = append(broken, fmt.Sprintf("Deployment %s: neither topologySpreadConstraints nor podAntiAffinity", d.Name))
		}
	}
	return broken
}

func haveTags(m manifests) []string {
	return m.eachContainer(func(c corev1.Container) []string {
		name := c.Image[strings.LastIndex(c.Image, "/")+1:] // a registry may have a port
		if _, tag, _ := strings.Cut(name, ":"); tag == "" || tag == "latest" {
			return []string{fmt.Sprintf("image %s, want a tag other than latest, or a digest", c.Image)}
		}
		return nil
	})
}

// haveUniqueSelectors compares the whole selectors, as Gatekeeper's template
// K8sUniqueServiceSelector does. AKS's template is reported to compare the ports as well;
// that would find less.
func haveUniqueSelectors(m manifests) (broken []string) {
	for i, s := range m.services {
		for _, other := range m.services[:i] {
			if s.Namespace == other.Namespace && len(s.Spec.Selector) > 0 && maps.Equal(s.Spec.Selector, other.Spec.Selector) {
				broken = append(broken, fmt.Sprintf("Service %s: same selector as Service %s", s.Name, other.Name))
			}
		}
	}
	return broken
}

func haveNoReservedLabels(m manifests) (broken []string) {
	find := func(what string, labels map[string]string) {
		for label := range labels {
			if domain, _, _ := strings.Cut(label, "/"); domain == "kubernetes.azure.com" {
				broken = append(broken, fmt.Sprintf("%s: label %s", what, label))
			}
		}
	}
	for _, o := range m.all {
		find(o.GetKind()+" "+o.GetName(), o.GetLabels())
	}
	for _, d := range m.deployments {
		find("pods of Deployment "+d.Name, d.Spec.Template.Labels)
	}
	return broken
}

// allowDisruptions finds budgets that never let a pod be evicted, which block the upgrade of
// nodes.
func allowDisruptions(m manifests) (broken []string) {
	for _, b := range m.budgets {
		if isNone(b.Spec.MaxUnavailable) || b.Spec.MinAvailable != nil {
			broken = append(broken, fmt.Sprintf("PodDisruptionBudget %s: want a maxUnavailable that is not 0", b.Name))
		}
	}
	return broken
}

func isNone(v *intstr.IntOrString) bool { return v == nil || v.String() == "0" || v.String() == "0%" }

func haveReadOnlyRoots(m manifests) []string {
	return m.eachContainer(func(c corev1.Container) []string {
		if s := c.SecurityContext; s == nil || s.ReadOnlyRootFilesystem == nil || !*s.ReadOnlyRootFilesystem {
			return []string{"no readOnlyRootFilesystem"}
		}
		return nil
	})
}

func nameNoAddresses(m manifests) (broken []string) {
	for _, p := range m.policies {
		var peers []networkingv1.NetworkPolicyPeer
		for _, r := range p.Spec.Ingress {
			peers = append(peers, r.From...)
		}
		for _, r := range p.Spec.Egress {
			peers = append(peers, r.To...)
		}
		for _, peer := range peers {
			if peer.IPBlock != nil {
				broken = append(broken, fmt.Sprintf("NetworkPolicy %s: ipBlock %s", p.Name, peer.IPBlock.CIDR))
			}
		}
	}
	return broken
}

func egressHasNumbers(m manifests) (broken []string) {
	for _, p := range m.policies {
		for _, r := range p.Spec.Egress {
			for _, port := range r.Ports {
				if port.Port != nil && port.Port.Type == intstr.String {
					broken = append(broken, fmt.Sprintf("NetworkPolicy %s: egress to the port %q, want its number", p.Name, port.Port.StrVal))
				}
			}
		}
	}
	return broken
}

// allowedOptions are the fields that AKS accepts in the options of a Gateway, by key of the
// ConfigMap. A field that begins with one of them is accepted as well.
var allowedOptions = map[string][]string{
	"deployment": {
		"metadata.labels", "metadata.annotations", "spec.replicas",
		"spec.template.metadata.labels", "spec.template.metadata.annotations",
		"spec.template.spec.affinity", "spec.template.spec.nodeSelector", "spec.template.spec.nodeName",
		"spec.template.spec.tolerations", "spec.template.spec.topologySpreadConstraints",
	},
	"service": {
		"metadata.labels", "metadata.annotations", "spec.type", "spec.loadBalancerSourceRanges", "spec.loadBalancerClass",
		"spec.externalTrafficPolicy", "spec.internalTrafficPolicy",
	},
	"horizontalPodAutoscaler": {
		"metadata.labels", "metadata.annotations", "spec.behavior", "spec.metrics", "spec.minReplicas", "spec.maxReplicas",
	},
	"podDisruptionBudget": {"metadata.labels", "metadata.annotations", "spec.minAvailable", "spec.unhealthyPodEvictionPolicy"},
}

func haveAllowedOptions(m manifests) (broken []string) {
	for _, c := range m.options {
		for key, text := range c.Data {
			var value map[string]any
			if err := yaml.Unmarshal([]byte(text), &value); err != nil {
				broken = append(broken, fmt.Sprintf("ConfigMap %s: %s: %v", c.Name, key, err))
				continue
			}
			for _, field := range refused("", value, allowedOptions[key]) {
				broken = append(broken, fmt.Sprintf("ConfigMap %s: %s: field %s", c.Name, key, field))
			}
		}
	}
	return broken
}

// refused returns the fields of value that are not in allowed. path is where value is.
func refused(path string, value map[string]any, allowed []string) (fields []string) {
next:
	for name, v := range value {
		field := path + name
		for _, a := range allowed {
			if field == a {
				continue next
			}
		}
		if inner, ok := v.(map[string]any); ok && len(inner) > 0 {
			fields = append(fields, refused(field+".", inner, allowed)...)
		} else {
			fields = append(fields, field)
		}
	}
	return fields
}
