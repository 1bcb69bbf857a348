package arm

import (
	"maps"
	"net/http"
	"slices"
	"strings"
)

// Microsoft Graph: the collections below are kept as resources under their own paths,
// such as /v1.0/applications/ID.
var graphRoutes = []route{
	on(http.MethodGet, `/v1.0/me`, func(*Server, *call) response { return ok(caller()) }),
	on(http.MethodPost, `/v1.0/directoryobjects/(?:getbyids|microsoft.graph.getbyids)`, (*Server).getDirectoryObjects),
	on(http.MethodGet, `/v1.0/(applications|serviceprincipals|users|groups)`, (*Server).listDirectory),
	on(http.MethodPost, `/v1.0/(applications|serviceprincipals)`, (*Server).createDirectoryObject),
	on(http.MethodGet, `/v1.0/applications/[^/]+/federatedidentitycredentials`, func(s *Server, c *call) response { return s.listBelow(c) }),
	on(http.MethodPost, `(/v1.0/applications/[^/]+)/federatedidentitycredentials`, (*Server).createFederatedCredential),
	on(http.MethodGet, `/v1.0/.+`, func(s *Server, c *call) response {
		if path := s.directoryPath(c.path); s.resources[path] != nil {
			return ok(clone(s.resources[path].body))
		}
		return noDirectoryObject(c)
	}),
	on(http.MethodPatch, `/v1.0/.+`, func(s *Server, c *call) response {
		path := s.directoryPath(c.path)
		if s.resources[path] == nil {
			return noDirectoryObject(c)
		}
		merge(s.resources[path].body, clone(c.body))
		return response{status: http.StatusNoContent}
	}),
	on(http.MethodDelete, `/v1.0/.+`, func(s *Server, c *call) response {
		path := s.directoryPath(c.path)
		if s.resources[path] == nil {
			return noDirectoryObject(c)
		}
		s.deleteDirectoryObject(path)
		return response{status: http.StatusNoContent}
	}),
}

func caller() object {
	return object{"id": Caller, "displayName": "Caller", "userPrincipalName": "caller@tandem.test", "@odata.type": "#microsoft.graph.user"}
}

func noDirectoryObject(c *call) response {
	return failure(http.StatusNotFound, "Request_ResourceNotFound", "Resource '%s' does not exist or one of its queried reference-property objects are not present.", lastPart(c.sent))
}

// directoryPath returns the path in the store of an object that a request names by its
// id, by appId='…', or, for a federated credential, by its name.
func (s *Server) directoryPath(path string) string {
	if before, id, found := strings.Cut(path, "(appid='"); found {
		id, rest, _ := strings.Cut(id, "')")
		for stored, r := range s.resources {
			if strings.HasPrefix(stored, before+"/") && strings.Count(stored, "/") == 3 && text(r.body["appId"]) == id {
				return stored + rest
			}
		}
	}
	if parent, name, found := cutLast(path, "/federatedidentitycredentials/"); found {
		for stored, r := range s.resources {
			if strings.HasPrefix(stored, parent+"/federatedidentitycredentials/") && strings.EqualFold(text(r.body["name"]), name) {
				return stored
			}
		}
	}
	return path
}

func (s *Server) listDirectory(c *call) response {
	if c.match[1] == "users" {
		return list([]any{caller()})
	}
	return s.listBelow(c)
}

// listBelow returns what lies directly below the path of the call.
func (s *Server) listBelow(c *call) response {
	prefix := s.directoryPath(c.path) + "/"
	filter := parseFilter(c.query.Get("$filter"))
	return s.listed(c, func(path string, r *resource) bool {
		name, below := strings.CutPrefix(path, prefix)
		if !below || strings.Contains(name, "/") {
			return false
		}
		names, _ := r.body["servicePrincipalNames"].([]any)
		want := filter["serviceprincipalnames/any"]
		return want == "" || slices.ContainsFunc(names, func(name any) bool { return strings.Contains(c.query.Get("$filter"), "'"+text(name)+"'") })
	})
}

func (s *Server) createDirectoryObject(c *call) response {
	id := s.newID()
	body := clone(c.body)
	maps.Copy(body, object{"id": id, "@odata.type": "#microsoft.graph.application"})
	if c.match[1] == "applications" {
		setDefault(body, "appId", s.newID())
		setDefault(body, "identifierUris", []any{})
	} else {
		path := s.directoryPath("/v1.0/applications(appid='" + text(body["appId"]) + "')")
		application := s.resources[path]
		if application == nil {
			return failure(http.StatusBadRequest, "Request_BadRequest", "The appId '%s' of the service principal does not reference a valid application object.", text(body["appId"]))
		}
		for _, r := range s.resources {
			if strings.HasPrefix(r.id, "/v1.0/serviceprincipals/") && r.body["appId"] == body["appId"] {
				return failure(http.StatusConflict, "Request_MultipleObjectsWithSameKeyValue", "The service principal cannot be created, as the app already has one.")
			}
		}
		maps.Copy(body, object{
			"@odata.type": "#microsoft.graph.servicePrincipal", "displayName": application.body["displayName"],
			"servicePrincipalNames": []any{body["appId"]}, "servicePrincipalType": "Application",
		})
	}
	s.resources[c.path+"/"+id] = &resource{id: c.path + "/" + id, body: body}
	return response{status: http.StatusCreated, body: clone(body)}
}

func (s *Server) createFederatedCredential(c *call) response {
	application := s.directoryPath(c.match[1])
	if s.resources[application] == nil {
		return noDirectoryObject(c)
	}
	for path, r := range s.resources {
		if !strings.HasPrefix(path, application+"/federatedidentitycredentials/") {
			continue
		}
		if r.body["name"] == c.body["name"] || r.body["subject"] == c.body["subject"] && r.body["issuer"] == c.body["issuer"] {
			return failure(http.StatusConflict, "Request_MultipleObjectsWithSameKeyValue", "FederatedIdentityCredential with name %s already exists.", text(c.body["name"]))
		}
	}
	id := s.newID()
	body := clone(c.body)
	body["id"] = id
	path := application + "/federatedidentitycredentials/" + id
	s.resources[path] = &resource{id: path, body: body}
	return response{status: http.StatusCreated, body: clone(body)}
}

// deleteDirectoryObject deletes an object and what lies below it. An application takes its
// service principal with it.
func (s *Server) deleteDirectoryObject(path string) {
	appID := s.resources[path].body["appId"]
	isApplication := strings.HasPrefix(path, "/v1.0/applications/") && strings.Count(path, "/") == 3
	for other, r := range s.resources {
		if other == path || strings.HasPrefix(other, path+"/") ||
			isApplication && strings.HasPrefix(other, "/v1.0/serviceprincipals/") && r.body["appId"] == appID {
			delete(s.resources, other)
		}
	}
}

func (s *Server) getDirectoryObjects(c *call) response {
	items := []any{}
	ids, _ := c.body["ids"].([]any)
	for _, id := range ids {
		if id == Caller {
			items = append(items, caller())
		}
		for path, r := range s.resources {
			if strings.HasPrefix(path, "/v1.0/") && r.body["id"] == id {
				items = append(items, clone(r.body))
			}
		}
	}
	return list(items)
}
