package arm

import (
	"encoding/base64"
	"fmt"
	"maps"
	"net/http"
	"strings"
)

const clusterType = "microsoft.containerservice/managedclusters"

// Versions that the Resource Manager offers.
const (
	KubernetesVersion = "1.36.3"
	MeshRevision      = "asm-1-30"
)

var clusterRoutes = []route{
	on(http.MethodPost, `(.*/providers/`+clusterType+`/[^/]+)/list(?:clusteruser|clusteradmin|clustermonitoringuser)credential`, (*Server).credential),
	on(http.MethodGet, `.*/providers/microsoft.containerservice/locations/[^/]+/kubernetesversions`, func(*Server, *call) response {
		return ok(object{"values": []any{object{
			"version": "1.36", "isDefault": true, "patchVersions": object{KubernetesVersion: object{"upgrades": []string{}}},
			"capabilities": object{"supportPlan": []string{"KubernetesOfficial"}},
		}}})
	}),
	on(http.MethodGet, `.*/providers/microsoft.containerservice/locations/[^/]+/meshrevisionprofiles`, func(*Server, *call) response {
		return list([]any{object{"name": "istio", "properties": object{"meshRevisions": []any{object{"revision": MeshRevision, "upgrades": []string{}, "compatibleWith": []any{}}}}}})
	}),
}

func (s *Server) credential(c *call) response {
	if s.resources[c.match[1]] == nil {
		return notFound(c.match[1])
	}
	return ok(object{"kubeconfigs": []any{object{"name": "clusterUser", "value": base64.StdEncoding.EncodeToString(s.options.Kubeconfig)}}})
}

// completeCluster adds what Azure adds. Profiles that az sent stay as they are.
func (s *Server) completeCluster(r *resource, id string) {
	p := r.properties()
	location := text(r.body["location"])
	if sku, _ := r.body["sku"].(object); sku["name"] == "Automatic" {
		completeAutomatic(p)
	}
	group := strings.Split(r.id, "/")[4]
	setDefault(p, "nodeResourceGroup", fmt.Sprintf("MC_%s_%s_%s", group, r.name(), location))
	setDefault(p, "kubernetesVersion", KubernetesVersion)
	setDefault(p, "dnsPrefix", r.name())
	setDefault(p, "servicePrincipalProfile", object{"clientId": "msi"}) // of a managed identity
	maps.Copy(p, object{
		"currentKubernetesVersion": KubernetesVersion,
		"fqdn":                     r.name() + "-0000.hcp." + location + ".azmk8s.io",
		"azurePortalFQDN":          r.name() + "-0000.portal.hcp." + location + ".azmk8s.io",
		"powerState":               object{"code": "Running"},
		"maxAgentPools":            100,
		"resourceUID":              id,
		"identityProfile": object{"kubeletidentity": object{
			"resourceId": "/subscriptions/" + Subscription + "/resourcegroups/" + text(p["nodeResourceGroup"]) +
				"/providers/Microsoft.ManagedIdentity/userAssignedIdentities/" + r.name() + "-agentpool",
			"clientId": "c" + id[1:], "objectId": "b" + id[1:],
		}},
	})
	identity := child(r.body, "identity")
	setDefault(identity, "type", "SystemAssigned")
	maps.Copy(identity, object{"principalId": "d" + id[1:], "tenantId": Tenant})
	if issuer, _ := p["oidcIssuerProfile"].(object); issuer["enabled"] == true {
		issuer["issuerURL"] = "https://" + location + ".oic.prod-aks.azure.com/" + Tenant + "/" + id + "/"
	}
	if mesh, _ := p["serviceMeshProfile"].(object); mesh["mode"] == "Istio" {
		setDefault(child(mesh, "istio"), "revisions", []any{MeshRevision})
	}
	network := child(p, "networkProfile")
	setDefault(network, "loadBalancerSku", "standard")
	setDefault(network, "outboundType", "loadBalancer")
	pools, _ := p["agentPoolProfiles"].([]any)
	for _, pool := range pools {
		maps.Copy(pool.(object), object{
			"provisioningState": "Succeeded", "powerState": object{"code": "Running"}, "orchestratorVersion": KubernetesVersion,
			"currentOrchestratorVersion": KubernetesVersion, "nodeImageVersion": "AKSUbuntu-2204gen2containerd-202608.01.0",
		})
	}
	addons, _ := p["addonProfiles"].(object)
	for name, addon := range addons {
		if addon := addon.(object); addon["enabled"] == true {
			addon["identity"] = object{"objectId": "e" + hash(name) + id[13:], "clientId": "f" + hash(name) + id[13:], "resourceId": r.id + "/" + name}
		}
	}
	nodes := "/subscriptions/" + Subscription + "/resourceGroups/" + text(p["nodeResourceGroup"])
	s.resources[strings.ToLower(nodes)] = &resource{id: nodes, body: object{
		"id": nodes, "name": p["nodeResourceGroup"], "type": properTypes[groupType], "location": location, "managedBy": r.id,
		"properties": object{"provisioningState": "Succeeded"},
	}}
}

// completeAutomatic adds the profiles that AKS Automatic always has.
func completeAutomatic(p object) {
	maps.Copy(p, object{
		"disableLocalAccounts":    true,
		"aadProfile":              object{"managed": true, "enableAzureRBAC": true, "tenantID": Tenant},
		"autoUpgradeProfile":      object{"upgradeChannel": "stable", "nodeOSUpgradeChannel": "NodeImage"},
		"nodeProvisioningProfile": object{"mode": "Auto"},
	})
	child(p, "oidcIssuerProfile")["enabled"] = true
	child(child(p, "securityProfile"), "workloadIdentity")["enabled"] = true
	maps.Copy(child(p, "networkProfile"), object{"networkPlugin": "azure", "networkPluginMode": "overlay", "networkDataplane": "cilium"})
}

func setDefault(of object, key string, value any) {
	if of[key] == nil {
		of[key] = value
	}
}

// completeMonitorAccount adds the default data collection of an Azure Monitor workspace.
func (s *Server) completeMonitorAccount(r *resource, id string) {
	managed := "/subscriptions/" + Subscription + "/resourceGroups/MA_" + r.name() + "_" + text(r.body["location"]) + "_managed/providers/Microsoft.Insights/"
	maps.Copy(r.properties(), object{
		"accountId": id,
		"metrics":   object{"prometheusQueryEndpoint": "https://" + r.name() + ".prometheus.monitor.azure.com", "internalId": "mac_" + id},
		"defaultIngestionSettings": object{
			"dataCollectionRuleResourceId":     managed + "dataCollectionRules/" + r.name(),
			"dataCollectionEndpointResourceId": managed + "dataCollectionEndpoints/" + r.name(),
		},
	})
}
