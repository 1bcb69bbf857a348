package arm

import (
	"bytes"
	"encoding/json"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strings"
)

// resource is anything with a path of its own.
type resource struct {
	id        string // the path, as it was first sent
	body      object
	operation *operation // the last one; nil if there was none
}

func (r *resource) properties() object { return child(r.body, "properties") }

func (r *resource) name() string { return lastPart(r.id) }

// child returns the object at a key, which it creates if there is none.
func child(of object, key string) object {
	value, found := of[key].(object)
	if !found {
		value = object{}
		of[key] = value
	}
	return value
}

func text(value any) string {
	s, _ := value.(string)
	return s
}

var (
	groupPath      = regexp.MustCompile(`^/subscriptions/[^/]+/resourcegroups/[^/]+$`)
	groupOf        = regexp.MustCompile(`^/subscriptions/[^/]+/resourcegroups/[^/]+`)
	resourceGroups = regexp.MustCompile(`(?i)/resourcegroups/`)
)

const groupType = "microsoft.resources/resourcegroups"

// typeOf returns the type of the resource or of the list at a path, in lower case, and
// whether the path is one resource.
func typeOf(path string) (kind string, single bool) {
	if groupPath.MatchString(path) {
		return groupType, true
	}
	_, path, found := cutLast(path, "/providers/")
	if !found {
		return "", false
	}
	parts := strings.Split(path, "/")
	kind = parts[0]
	for i := 1; i < len(parts); i += 2 {
		kind += "/" + parts[i]
	}
	return kind, len(parts)%2 == 1
}

func cutLast(s, separator string) (before, after string, found bool) {
	i := strings.LastIndex(s, separator)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(separator):], true
}

// properTypes are the types whose names scripts may read, as Azure writes them.
var properTypes = map[string]string{
	groupType:                                         "Microsoft.Resources/resourceGroups",
	"microsoft.containerregistry/registries":          "Microsoft.ContainerRegistry/registries",
	"microsoft.containerservice/managedclusters":      "Microsoft.ContainerService/ManagedClusters",
	"microsoft.operationalinsights/workspaces":        "Microsoft.OperationalInsights/workspaces",
	"microsoft.monitor/accounts":                      "Microsoft.Monitor/accounts",
	"microsoft.authorization/roleassignments":         "Microsoft.Authorization/roleAssignments",
	"microsoft.insights/datacollectionrules":          "Microsoft.Insights/dataCollectionRules",
	"microsoft.alertsmanagement/prometheusrulegroups": "Microsoft.AlertsManagement/prometheusRuleGroups",
}

// asynchronous are the providers whose changes go on after the response.
var asynchronous = []string{"microsoft.containerservice/", "microsoft.containerregistry/", "microsoft.operationalinsights/", deploymentType}

func isAsynchronous(kind string) bool {
	return slices.ContainsFunc(asynchronous, func(prefix string) bool { return strings.HasPrefix(kind, prefix) })
}

var resourceRoutes = []route{
	on(http.MethodPut, `/subscriptions/.+`, (*Server).put),
	on(http.MethodPatch, `/subscriptions/.+`, (*Server).patch),
	on(http.MethodDelete, `/subscriptions/.+`, (*Server).remove),
	on(http.MethodHead, `/subscriptions/.+`, (*Server).head),
	on(http.MethodGet, `/subscriptions/[^/]+/resourcegroups`, func(s *Server, c *call) response {
		return s.listed(c, func(path string, _ *resource) bool { return groupPath.MatchString(path) })
	}),
	on(http.MethodGet, `(/subscriptions/[^/]+(?:/resourcegroups/[^/]+)?)/resources`, func(s *Server, c *call) response {
		return s.listed(c, func(path string, _ *resource) bool {
			kind, _ := typeOf(path)
			return strings.HasPrefix(path, c.match[1]+"/") && strings.Count(path, "/providers/") == 1 && strings.Count(kind, "/") == 1 &&
				kind != "microsoft.authorization/roleassignments" && kind != deploymentType
		})
	}),
	on(http.MethodGet, `/subscriptions/.+`, (*Server).get),
}

func (s *Server) put(c *call) response {
	kind, single := typeOf(c.path)
	if !single {
		return failure(http.StatusNotImplemented, "NotImplemented", "PUT of %s", c.sent)
	}
	if answer, refused := s.refuse(c, kind); refused {
		return answer
	}
	r, exists := s.resources[c.path]
	if !exists {
		r = &resource{id: resourceGroups.ReplaceAllString(c.sent, "/resourceGroups/")}
		s.resources[c.path] = r
	}
	r.body = clone(c.body)
	if kind == deploymentType {
		if err := s.deploy(r); err != nil {
			delete(s.resources, c.path)
			return failure(http.StatusBadRequest, "InvalidTemplate", "%s", err)
		}
	}
	s.complete(r, kind)
	if !isAsynchronous(kind) {
		r.properties()["provisioningState"] = "Succeeded"
		return response{status: created(exists), body: clone(r.body)}
	}
	r.properties()["provisioningState"] = "Creating"
	if exists {
		r.properties()["provisioningState"] = "Updating"
	}
	header := s.start(s.change(r, c), c)
	return response{status: created(exists), header: header, body: clone(r.body)}
}

// change returns the operation that ends a PUT or a PATCH.
func (s *Server) change(r *resource, c *call) *operation {
	body := r.body
	set := func(state string) func() { return func() { child(body, "properties")["provisioningState"] = state } }
	r.operation = &operation{failure: s.failOperation(c), finish: set("Succeeded"), fail: set("Failed")}
	return r.operation
}

func created(exists bool) int {
	if exists {
		return http.StatusOK
	}
	return http.StatusCreated
}

// refuse returns the error of a request that Azure would not accept.
func (s *Server) refuse(c *call, kind string) (response, bool) {
	provider, _, _ := strings.Cut(kind, "/")
	if s.providerState(provider) != registered {
		return failure(http.StatusConflict, "MissingSubscriptionRegistration",
			"The subscription is not registered to use namespace '%s'. See https://aka.ms/rps-not-found for how to register subscriptions.", provider), true
	}
	if group := groupOf.FindString(c.path); group != "" && group != c.path && s.resources[group] == nil {
		return failure(http.StatusNotFound, "ResourceGroupNotFound", "Resource group '%s' could not be found.", lastPart(group)), true
	}
	scope, _, _ := cutLast(c.path, assignmentPath)
	scope, _, _ = strings.Cut(scope, "/namespaces/") // of a cluster: Azure does not know which there are
	if scope != c.path && strings.Contains(scope, "/providers/") && s.resources[scope] == nil {
		return notFound(scope), true
	}
	switch kind {
	case "microsoft.authorization/roleassignments":
		return s.refuseAssignment(c)
	case registryType:
		return s.refuseRegistry(c)
	}
	return response{}, false
}

func notFound(path string) response {
	return failure(http.StatusNotFound, "ResourceNotFound", "The Resource '%s' was not found.", path)
}

// complete adds what Azure adds to a resource.
func (s *Server) complete(r *resource, kind string) {
	r.body["id"], r.body["name"], r.body["type"] = r.id, r.name(), kind
	if proper := properTypes[kind]; proper != "" {
		r.body["type"] = proper
	}
	// Equal for each PUT of one path.
	id := "55555555-5555-4555-8555-" + hash(strings.ToLower(r.id))
	switch kind {
	case clusterType:
		s.completeCluster(r, id)
	case registryType:
		s.completeRegistry(r)
	case "microsoft.managedidentity/userassignedidentities":
		maps.Copy(r.properties(), object{"clientId": "c" + id[1:], "principalId": "b" + id[1:], "tenantId": Tenant})
	case "microsoft.operationalinsights/workspaces":
		r.properties()["customerId"] = id
	case "microsoft.monitor/accounts":
		s.completeMonitorAccount(r, id)
	case "microsoft.authorization/roleassignments":
		scope, _, _ := cutLast(r.id, "/providers/")
		r.properties()["scope"] = scope
	case "microsoft.insights/datacollectionrules":
		r.properties()["immutableId"] = "dcr-" + id
	}
}

// patch merges the body into the resource, as RFC 7396 says.
func (s *Server) patch(c *call) response {
	r := s.resources[c.path]
	if r == nil {
		return notFound(c.sent)
	}
	merge(r.body, clone(c.body))
	kind, _ := typeOf(c.path)
	s.complete(r, kind)
	if !isAsynchronous(kind) {
		return ok(clone(r.body))
	}
	r.properties()["provisioningState"] = "Updating"
	header := s.start(s.change(r, c), c)
	return response{status: http.StatusOK, header: header, body: clone(r.body)}
}

func merge(into, from object) {
	for key, value := range from {
		below, isObject := value.(object)
		target, both := into[key].(object)
		switch {
		case value == nil:
			delete(into, key)
		case isObject && both:
			merge(target, below)
		default:
			into[key] = value
		}
	}
}

// find returns the resource at a path, or nil. Who looks at a resource sees its operation
// go on, as who polls the operation does.
func (s *Server) find(path string) *resource {
	if r := s.resources[path]; r != nil && r.operation != nil {
		r.operation.poll()
	}
	return s.resources[path]
}

func (s *Server) get(c *call) response {
	if r := s.find(c.path); r != nil {
		return ok(clone(r.body))
	}
	kind, single := typeOf(c.path)
	switch {
	case kind == groupType:
		return failure(http.StatusNotFound, "ResourceGroupNotFound", "Resource group '%s' could not be found.", lastPart(c.sent))
	case single:
		return notFound(c.sent)
	case kind == "":
		return failure(http.StatusNotImplemented, "NotImplemented", "GET of %s", c.sent)
	}
	// A list below a resource holds its children, one below a group or a subscription all of the type.
	scope, _, _ := cutLast(c.path, "/providers/")
	prefix := scope + "/"
	if strings.Count(kind, "/") > 1 {
		prefix = c.path + "/"
	}
	return s.listed(c, func(path string, _ *resource) bool {
		of, isOne := typeOf(path)
		return isOne && of == kind && strings.HasPrefix(path, prefix)
	})
}

// listed returns the resources that match, and that the request's $filter selects.
func (s *Server) listed(c *call, match func(path string, r *resource) bool) response {
	filter := parseFilter(c.query.Get("$filter"))
	items := []any{}
	for _, path := range slices.Sorted(maps.Keys(s.resources)) {
		r := s.resources[path]
		if match(path, r) && filter.selects(r.body) {
			items = append(items, clone(r.body))
		}
	}
	return list(items)
}

func (s *Server) head(c *call) response {
	if s.find(c.path) == nil {
		return response{status: http.StatusNotFound}
	}
	return response{status: http.StatusNoContent}
}

func (s *Server) remove(c *call) response {
	r := s.resources[c.path]
	kind, _ := typeOf(c.path)
	switch {
	case r == nil && kind == groupType:
		return s.get(c)
	case r == nil:
		return response{status: http.StatusNoContent}
	case kind != groupType && !isAsynchronous(kind):
		body := clone(r.body)
		s.forget(c.path)
		return ok(body)
	}
	r.properties()["provisioningState"] = "Deleting"
	r.operation = &operation{failure: s.failOperation(c), finish: func() { s.forget(c.path) }}
	return response{status: http.StatusAccepted, header: s.start(r.operation, c)}
}

// forget deletes a resource, all that lies below it, and a cluster's own group.
func (s *Server) forget(path string) {
	for below, r := range s.resources {
		if below != path && !strings.HasPrefix(below, path+"/") {
			continue
		}
		delete(s.resources, below)
		if kind, _ := typeOf(below); kind == clusterType {
			s.forget(strings.ToLower("/subscriptions/" + Subscription + "/resourceGroups/" + text(r.properties()["nodeResourceGroup"])))
		}
	}
}

// Resources returns the bodies of all resources by path in lower case.
func (s *Server) Resources() map[string]map[string]any {
	s.mu.Lock()
	defer s.mu.Unlock()
	bodies := map[string]map[string]any{}
	for path, r := range s.resources {
		bodies[path] = clone(r.body)
	}
	return bodies
}

// state is what Snapshot keeps.
type state struct {
	URL       string
	IDs       int
	Images    map[string]string
	Resources map[string]savedResource // by path in lower case
}

type savedResource struct {
	ID   string
	Body object
}

// Snapshot returns all resources and images, for Restore.
func (s *Server) Snapshot() ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	saved := state{s.url, s.ids, s.images, map[string]savedResource{}}
	for path, r := range s.resources {
		saved.Resources[path] = savedResource{r.id, r.body}
	}
	return json.Marshal(saved)
}

// Restore resets the server to a snapshot, which may be of another server.
func (s *Server) Restore(snapshot []byte) error {
	s.Reset()
	s.mu.Lock()
	defer s.mu.Unlock()
	var saved state
	if err := json.Unmarshal(snapshot, &saved); err != nil {
		return err
	}
	// Registries have the server's address.
	moved := bytes.ReplaceAll(snapshot, []byte(strings.TrimPrefix(saved.URL, "https://")), []byte(s.host()))
	if err := json.Unmarshal(moved, &saved); err != nil {
		return err
	}
	s.ids, s.images = saved.IDs, saved.Images
	for path, r := range saved.Resources {
		s.resources[path] = &resource{id: r.ID, body: r.Body}
	}
	return nil
}

// Forget deletes the resources whose paths match a regular expression, as if somebody
// had deleted them.
func (s *Server) Forget(pattern string) {
	matches := regexp.MustCompile("(?i)" + pattern)
	s.mu.Lock()
	defer s.mu.Unlock()
	maps.DeleteFunc(s.resources, func(path string, _ *resource) bool { return matches.MatchString(path) })
}

// Add adds a resource that somebody else made.
func (s *Server) Add(id string, body map[string]any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := &resource{id: id, body: clone(body)}
	kind, _ := typeOf(strings.ToLower(id))
	s.complete(r, kind)
	r.properties()["provisioningState"] = "Succeeded"
	s.resources[strings.ToLower(id)] = r
}

func clone(body object) object {
	encoded, _ := json.Marshal(body)
	var copied object
	_ = json.Unmarshal(encoded, &copied)
	return copied
}

// filter is an OData filter of comparisons joined by and.
type filter map[string]string

var comparison = regexp.MustCompile(`(?i)([\w/]+)(?: eq |:\w+ eq |\()'?([^')]*)'?`)

func parseFilter(source string) filter {
	f := filter{}
	for _, m := range comparison.FindAllStringSubmatch(source, -1) {
		f[strings.ToLower(m[1])] = m[2]
	}
	return f
}

// selects reports whether the values of a body, or of its properties, are those of the
// filter. It ignores keys that the body does not have, such as atScope().
func (f filter) selects(body object) bool {
	values := object{}
	for _, source := range []object{body, child(body, "properties")} {
		for key, value := range source {
			values[strings.ToLower(key)] = value
		}
	}
	values["resourcetype"] = values["type"]
	for key, want := range f {
		if got, known := values[key].(string); known && !strings.EqualFold(got, want) {
			return false
		}
	}
	return true
}
