package arm

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"
)

const registryType = "microsoft.containerregistry/registries"

var registryRoutes = slices.Concat(runRoutes, []route{
	on(http.MethodPost, `/subscriptions/[^/]+/providers/microsoft.containerregistry/checknameavailability`, func(s *Server, c *call) response {
		name := text(c.body["name"])
		if s.registryTaken(name) {
			return ok(object{"nameAvailable": false, "reason": "AlreadyExists", "message": "The registry " + name + " is already in use."})
		}
		return ok(object{"nameAvailable": true})
	}),
	on(http.MethodGet, `.*/providers/`+registryType+`/[^/]+/listusages`, func(*Server, *call) response { return list([]any{}) }),
	on(http.MethodPost, `(.*/providers/`+registryType+`/[^/]+)/importimage`, (*Server).importImage),
	on(http.MethodPost, `/oauth2/exchange`, func(s *Server, _ *call) response {
		return ok(object{"refresh_token": s.registryToken("refresh", nil)})
	}),
	on(http.MethodPost, `/oauth2/token`, (*Server).exchangeToken), // of az
	on(http.MethodGet, `/oauth2/token`, (*Server).exchangeToken),  // of Docker
	on(http.MethodGet, `/acr/v1/(.+)/_(?:tags|manifests)/([^/]+)`, (*Server).showImage),
})

// registryTaken reports whether a registry of that name exists anywhere, or was taken by
// TakeRegistryName: names are global.
func (s *Server) registryTaken(name string) bool {
	for path := range s.resources {
		if strings.HasSuffix(path, "/providers/"+registryType+"/"+strings.ToLower(name)) {
			return true
		}
	}
	return s.taken[strings.ToLower(name)]
}

// TakeRegistryName makes the name of a registry belong to somebody else.
func (s *Server) TakeRegistryName(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.taken[strings.ToLower(name)] = true
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
		"loginServer":  s.host(), // a script that builds it from the name fails
		"creationDate": "2026-08-01T00:00:00Z",
	})
}

// host is the address of this server, which is the login server of each registry, too.
func (s *Server) host() string { return strings.TrimPrefix(s.url, "https://") }

func (s *Server) registryToken(kind string, access []any) string {
	return unsignedToken(object{"kind": kind, "access": access})
}

// exchangeToken returns a token for the scopes of the request. It asks for no
// credentials: tests of rights belong to the control plane.
func (s *Server) exchangeToken(c *call) response {
	form, _ := url.ParseQuery(string(c.raw))
	var access []any
	for _, scope := range append(form["scope"], c.query["scope"]...) {
		if parts := strings.Split(scope, ":"); len(parts) == 3 {
			access = append(access, object{"type": parts[0], "name": parts[1], "actions": strings.Split(parts[2], ",")})
		}
	}
	token := s.registryToken("access", access)
	return ok(object{"access_token": token, "token": token})
}

// showImage responds as ACR's own API, which az acr repository show calls.
func (s *Server) showImage(c *call) response {
	repository, reference := c.match[1], lastPart(c.sent)
	digest := s.digest(c.http.Context(), repository, reference)
	if digest == "" {
		return response{status: http.StatusNotFound, body: object{"errors": []any{object{
			"code": "TAG_UNKNOWN", "message": "the specified tag does not exist", "detail": "tag " + reference + " is not known to registry",
		}}}}
	}
	attributes := object{"deleteEnabled": true, "writeEnabled": true, "readEnabled": true, "listEnabled": true}
	return ok(object{"registry": s.host(), "imageName": repository, "tag": object{
		"name": reference, "digest": digest, "createdTime": "2026-08-01T00:00:00Z", "lastUpdateTime": "2026-08-01T00:00:00Z", "changeableAttributes": attributes,
	}})
}

// digest returns the digest of an image in the registry, or "".
func (s *Server) digest(ctx context.Context, repository, reference string) string {
	if s.options.Registry == "" {
		return s.images[repository+":"+reference]
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodHead, s.options.Registry+"/v2/"+repository+"/manifests/"+reference, nil)
	if err != nil {
		return ""
	}
	request.Header.Set("Accept", "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json, application/vnd.docker.distribution.manifest.list.v2+json")
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return ""
	}
	defer func() { _ = answer.Body.Close() }()
	_, _ = io.Copy(io.Discard, answer.Body)
	if answer.StatusCode != http.StatusOK {
		return ""
	}
	return answer.Header.Get("Docker-Content-Digest")
}

// importImage adds an image without contents, of which only the digest is seen.
func (s *Server) importImage(c *call) response {
	if s.resources[c.match[1]] == nil {
		return notFound(c.match[1])
	}
	source := child(c.body, "source")
	targets, _ := c.body["targetTags"].([]any)
	o := &operation{failure: s.failOperation(c), finish: func() {
		for _, target := range targets {
			s.images[text(target)] = digestOf(text(source["registryUri"]) + "/" + text(source["sourceImage"]))
		}
	}}
	return response{status: http.StatusAccepted, header: s.start(o, c)}
}

func digestOf(content string) string { return fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(content))) }

// serveRegistry is the registry's own API: a challenge as ACR's, then the registry of
// Options. Docker pushes large bodies here, so it takes no lock.
func (s *Server) serveRegistry(w http.ResponseWriter, r *http.Request) {
	if !strings.HasPrefix(r.Header.Get("Authorization"), "Bearer ") {
		w.Header().Set("Www-Authenticate", fmt.Sprintf("Bearer realm=\"%s/oauth2/token\",service=%q", s.url, s.host()))
		writeJSON(w, http.StatusUnauthorized, object{"errors": []any{object{"code": "UNAUTHORIZED", "message": "authentication required"}}})
		return
	}
	target, err := url.Parse(s.options.Registry)
	if err != nil || target.Host == "" {
		writeJSON(w, http.StatusNotFound, object{"errors": []any{object{"code": "NAME_UNKNOWN", "message": "there is no registry"}}})
		return
	}
	proxy := &httputil.ReverseProxy{Rewrite: func(p *httputil.ProxyRequest) {
		p.SetURL(target)
		p.Out.Host = p.In.Host // the registry's Location headers lead here
		p.SetXForwarded()
		p.Out.Header.Del("Authorization")
	}}
	proxy.ServeHTTP(w, r)
}
