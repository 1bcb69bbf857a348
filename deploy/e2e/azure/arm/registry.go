package arm

import (
	"maps"
	"net/http"
	"strings"
)

const registryType = "microsoft.containerregistry/registries"

var registryRoutes = []route{
	on(http.MethodPost, `/subscriptions/[^/]+/providers/microsoft.containerregistry/checknameavailability`, func(s *Server, c *call) response {
		name := text(c.body["name"])
		if s.registryTaken(name) {
			return ok(object{"nameAvailable": false, "reason": "AlreadyExists", "message": "The registry " + name + " is already in use."})
		}
		return ok(object{"nameAvailable": true})
	}),
	on(http.MethodGet, `.*/providers/`+registryType+`/[^/]+/listusages`, func(*Server, *call) response { return list([]any{}) }),
}

// registryTaken reports whether a registry of that name exists anywhere: names are
// global.
func (s *Server) registryTaken(name string) bool {
	for path := range s.resources {
		if strings.HasSuffix(path, "/providers/"+registryType+"/"+strings.ToLower(name)) {
			return true
		}
	}
	return false
}

func (s *Server) refuseRegistry(c *call) (response, bool) {
	name := lastPart(c.sent)
	if s.resources[c.path] == nil && s.registryTaken(name) {
		return failure(http.StatusConflict, "AlreadyInUse", "The registry DNS name %s.azurecr.io is already in use. You can check if the name is already claimed using following API: https://learn.microsoft.com/rest/api/containerregistry/registries/checknameavailability", name), true
	}
	return response{}, false
}

func (s *Server) completeRegistry(r *resource) {
	setDefault(r.properties(), "adminUserEnabled", false)
	maps.Copy(r.properties(), object{
		"loginServer":  strings.ToLower(r.name()) + ".azurecr.test",
		"creationDate": "2026-08-01T00:00:00Z",
	})
}
