package arm

import (
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"strings"
)

// The regions that the subscription has. Only the first has zones.
const (
	RegionWithZones    = "eastus2" // the default of scripts/aks
	RegionWithoutZones = "westus"
)

const registered = "Registered"

// roles are the built-in roles that the scripts use, with the ids that they have in Azure.
var roles = map[string]string{
	"AcrPull": "7f951dda-4ed3-4680-a7ca-43fe172d538d",
	"AcrPush": "8311e382-0749-4cb8-b61a-304f252e45ec",
	"Azure Kubernetes Service Cluster User Role":  "4abbcc35-e782-43d8-92c5-2d3f1bd2253f",
	"Azure Kubernetes Service RBAC Admin":         "3498e952-d568-435e-9b2c-8d77e338d7f7",
	"Azure Kubernetes Service RBAC Cluster Admin": "b1ff04bb-8a4e-4dc4-8eb5-8693973ce19b",
	"Azure Kubernetes Service RBAC Reader":        "7f6c6a51-bcf8-42ba-9220-52d62157d7db",
	"Azure Kubernetes Service RBAC Writer":        "a7ffa36f-339b-4b5c-8bdf-e2c188b2c0eb",
	"Container Registry Tasks Contributor":        "fb382eab-e894-4461-af04-94435c366c3f",
	"Contributor":                                 "b24988ac-6180-42a0-ab88-20f7382dd24c",
	"Monitoring Data Reader":                      "b0d8363b-8ddd-447d-831f-62ca05bff136",
	"Monitoring Metrics Publisher":                "3913510d-42f4-4e42-8a64-420c390055eb",
	"Monitoring Reader":                           "43d0d8ad-25c7-4714-9337-8ba259a9fe05",
	"Owner":                                       "8e3af657-a8ff-443c-a75c-2fe8c4bcb635",
	"Reader":                                      "acdd72a7-3385-48ef-bd42-f606fba81ae7",
	"Role Based Access Control Administrator":     "f58310d9-a9f6-439a-9e8d-f62e7b41a168",
	"User Access Administrator":                   "18d7d88d-d35e-4fb5-a5c3-7773c20a72d9",
}

var fixedRoutes = []route{
	on(http.MethodGet, `/metadata/endpoints`, (*Server).endpoints),
	on(http.MethodGet, `/tenants`, func(*Server, *call) response {
		return list([]any{object{"id": "/tenants/" + Tenant, "tenantId": Tenant, "displayName": "Tandem"}})
	}),
	on(http.MethodGet, `/subscriptions`, func(*Server, *call) response { return list([]any{subscription()}) }),
	on(http.MethodGet, `/subscriptions/[^/]+`, func(*Server, *call) response { return ok(subscription()) }),
	on(http.MethodGet, `/subscriptions/[^/]+/locations`, func(*Server, *call) response {
		return list([]any{location(RegionWithZones), location(RegionWithoutZones)})
	}),
	on(http.MethodGet, `/subscriptions/[^/]+/providers`, func(s *Server, _ *call) response {
		var all []any
		for _, name := range []string{"Microsoft.ContainerService", "Microsoft.ContainerRegistry", "Microsoft.Monitor", "Microsoft.OperationalInsights", "Microsoft.Insights", "Microsoft.Compute", "Microsoft.AlertsManagement", "Microsoft.Network", "Microsoft.Storage", "Microsoft.ManagedIdentity", "Microsoft.OperationsManagement"} {
			all = append(all, s.provider(name))
		}
		return list(all)
	}),
	on(http.MethodGet, `/subscriptions/[^/]+/providers/([^/]+)`, func(s *Server, c *call) response { return ok(s.provider(lastPart(c.sent))) }),
	on(http.MethodPost, `/subscriptions/[^/]+/providers/([^/]+)/register`, func(s *Server, c *call) response {
		s.setProvider(c.match[1], registered)
		return ok(s.provider(c.match[1]))
	}),
	on(http.MethodGet, `.*/providers/microsoft.authorization/roledefinitions`, (*Server).listRoles),
	on(http.MethodGet, `.*/providers/microsoft.authorization/roledefinitions/([^/]+)`, func(_ *Server, c *call) response {
		for name, id := range roles {
			if id == c.match[1] {
				return ok(role(name))
			}
		}
		return notFound(c.sent)
	}),
	on(http.MethodGet, `(.*)/providers/microsoft.authorization/roleassignments`, (*Server).listAssignments),
	on(http.MethodGet, `.*/providers/microsoft.authorization/permissions`, func(s *Server, _ *call) response {
		denied := []string{}
		if s.contributor {
			denied = []string{"Microsoft.Authorization/*/Delete", "Microsoft.Authorization/*/Write", "Microsoft.Authorization/elevateAccess/Action"}
		}
		return list([]any{object{"actions": []string{"*"}, "notActions": denied}})
	}),
	on(http.MethodGet, `.*/providers/microsoft.authorization/locks`, func(*Server, *call) response { return list([]any{}) }),
	on(http.MethodGet, `.*/providers/microsoft.compute/skus`, func(*Server, *call) response { return list(skus()) }),
	on(http.MethodGet, `.*/providers/microsoft.(?:compute|containerservice|network)/locations/([^/]+)/usages`, func(s *Server, _ *call) response {
		return list([]any{s.usage("cores", "Total Regional vCPUs"), s.usage("standardDSv5Family", "Standard DSv5 Family vCPUs")})
	}),
	on(http.MethodGet, `.*/providers/microsoft.alertsmanagement/alertrulerecommendations`, func(*Server, *call) response { return list([]any{}) }),
}

func (s *Server) endpoints(*call) response {
	return ok(object{
		"name": "tandem",
		"authentication": object{
			"loginEndpoint": s.url + "/", "audiences": []string{s.url + "/"}, "tenant": "common", "identityProvider": "AAD",
		},
		"portal": s.url, "graph": s.url, "graphAudience": s.url, "microsoftGraphResourceId": s.url, "resourceManager": s.url,
		"gallery": s.url, "batch": s.url, "media": s.url, "sqlManagement": s.url, "vmImageAliasDoc": s.url, "activeDirectoryDataLake": s.url,
		"suffixes": object{"acrLoginServer": "azurecr.test", "keyVaultDns": "vault.test", "storage": "core.test"},
	})
}

func subscription() object {
	return object{
		"id": "/subscriptions/" + Subscription, "subscriptionId": Subscription, "tenantId": Tenant,
		"displayName": "Tandem", "state": "Enabled", "subscriptionPolicies": object{},
	}
}

func location(name string) object {
	l := object{
		"id": "/subscriptions/" + Subscription + "/locations/" + name, "name": name, "type": "Region",
		"displayName": name, "regionalDisplayName": name, "metadata": object{"regionType": "Physical", "regionCategory": "Recommended"},
	}
	if name == RegionWithZones {
		l["availabilityZoneMappings"] = []any{
			object{"logicalZone": "1", "physicalZone": name + "-az1"}, object{"logicalZone": "2", "physicalZone": name + "-az2"}, object{"logicalZone": "3", "physicalZone": name + "-az3"},
		}
	}
	return l
}

func (s *Server) setProvider(name, state string) { s.providers[strings.ToLower(name)] = state }

func (s *Server) providerState(name string) string {
	if state, set := s.providers[strings.ToLower(name)]; set {
		return state
	}
	return registered
}

func (s *Server) provider(name string) object {
	kinds := []any{}
	for _, kind := range []string{"managedClusters", "registries", "workspaces", "accounts", "virtualMachines", "dataCollectionRules", "prometheusRuleGroups", "components"} {
		kinds = append(kinds, object{
			"resourceType": kind, "locations": []string{RegionWithZones, RegionWithoutZones}, "apiVersions": []string{"2025-01-01"},
			"zoneMappings": []any{object{"location": RegionWithZones, "zones": []string{"1", "2", "3"}}},
		})
	}
	return object{
		"id": "/subscriptions/" + Subscription + "/providers/" + name, "namespace": name,
		"registrationState": s.providerState(name), "resourceTypes": kinds,
	}
}

// skus are sizes of virtual machines of which each region has some.
func skus() []any {
	var all []any
	for _, region := range []string{RegionWithZones, RegionWithoutZones} {
		zones := []string{}
		if region == RegionWithZones {
			zones = []string{"1", "2", "3"}
		}
		for size, family := range map[string]string{
			"Standard_D2s_v5": "standardDSv5Family", "Standard_D4s_v5": "standardDSv5Family",
			"Standard_D2as_v5": "standardDASv5Family", "Standard_D4as_v5": "standardDASv5Family",
			"Standard_D2ads_v5": "standardDADSv5Family", "Standard_D4ads_v5": "standardDADSv5Family",
		} {
			all = append(all, object{
				"name": size, "resourceType": "virtualMachines", "family": family, "size": strings.TrimPrefix(size, "Standard_"), "tier": "Standard",
				"locations": []string{region}, "locationInfo": []any{object{"location": region, "zones": zones}}, "restrictions": []any{},
				"capabilities": []any{object{"name": "vCPUs", "value": size[len("Standard_D") : len("Standard_D")+1]}},
			})
		}
	}
	return all
}

func (s *Server) usage(name, localized string) object {
	return object{"name": object{"value": name, "localizedValue": localized}, "currentValue": 0, "limit": s.cores, "unit": "Count"}
}

func role(name string) object {
	return object{
		"id":         "/subscriptions/" + Subscription + "/providers/Microsoft.Authorization/roleDefinitions/" + roles[name],
		"name":       roles[name],
		"type":       "Microsoft.Authorization/roleDefinitions",
		"properties": object{"roleName": name, "type": "BuiltInRole", "assignableScopes": []string{"/"}, "permissions": []any{}},
	}
}

func (s *Server) listRoles(c *call) response {
	want := parseFilter(c.query.Get("$filter"))["rolename"]
	items := []any{}
	for name := range roles {
		if want == "" || strings.EqualFold(name, want) {
			items = append(items, role(name))
		}
	}
	return list(items)
}

const assignmentPath = "/providers/microsoft.authorization/roleassignments/"

// listAssignments returns the assignments that apply at the scope and, without
// atScope(), those below it.
func (s *Server) listAssignments(c *call) response {
	filter := c.query.Get("$filter")
	return s.listed(c, func(path string, _ *resource) bool {
		scope, _, isAssignment := cutLast(path, assignmentPath)
		return isAssignment && (strings.HasPrefix(c.match[1]+"/", scope+"/") ||
			!strings.Contains(strings.ToLower(filter), "atscope()") && strings.HasPrefix(scope+"/", c.match[1]+"/"))
	})
}

// refuseAssignment refuses a second assignment of one role, under another name, and a group that is called something else.
func (s *Server) refuseAssignment(c *call) (response, bool) {
	scope, _, _ := cutLast(c.path, assignmentPath)
	if s.contributor {
		return failure(http.StatusForbidden, "AuthorizationFailed", "The client '%s' with object id '%s' does not have authorization to perform action 'Microsoft.Authorization/roleAssignments/write' over scope '%s' or the scope is invalid. If access was recently granted, please refresh your credentials.", Caller, Caller, scope), true
	}
	wanted := child(c.body, "properties")
	if s.resources["/v1.0/groups/"+text(wanted["principalId"])] != nil && wanted["principalType"] != "Group" {
		return failure(http.StatusBadRequest, "UnmatchedPrincipalType", "The PrincipalId '%s' has type 'Group', which is different from specified PrinciaplType '%s'.", wanted["principalId"], wanted["principalType"]), true
	}
	for path, r := range s.resources {
		existing, isAssignment := strings.CutPrefix(path, scope+assignmentPath)
		if isAssignment && path != c.path && r.properties()["principalId"] == wanted["principalId"] &&
			strings.EqualFold(lastPart(text(r.properties()["roleDefinitionId"])), lastPart(text(wanted["roleDefinitionId"]))) {
			return failure(http.StatusConflict, "RoleAssignmentExists", "The role assignment already exists. The ID of the existing role assignment is %s.", strings.ReplaceAll(existing, "-", "")), true
		}
	}
	return response{}, false
}

func lastPart(path string) string { return path[strings.LastIndex(path, "/")+1:] }

// hash returns twelve hexadecimal digits, as the last group of a UUID has.
func hash(of string) string {
	sum := sha256.Sum256([]byte(of))
	return hex.EncodeToString(sum[:6])
}
