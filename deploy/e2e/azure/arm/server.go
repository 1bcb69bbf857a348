// Package arm is an Azure Resource Manager in memory, for the real Azure CLI. It
// listens on loopback, keeps what az creates, and records every request.
//
//	server.go     start, dispatch, recording
//	resources.go  PUT, GET, PATCH, DELETE and lists of any resource
//	operations.go operations that take two polls
//	faults.go     failures on demand
//	fixed.go      what every subscription has: locations, providers, roles, quotas
//	cluster.go    what Azure adds to a managed cluster
//	registry.go   what Azure adds to a container registry, and its login server
//	runs.go       az acr run
//	template.go   az deployment group create
//	graph.go      Microsoft Graph: applications and service principals
//
// It checks what the scripts of this repository depend on, not all that Azure checks.
package arm

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"
)

// Identifiers of the subscription and of the caller who is logged in.
const (
	Subscription = "11111111-1111-4111-8111-111111111111"
	Tenant       = "22222222-2222-4222-8222-222222222222"
	Caller       = "33333333-3333-4333-8333-333333333333" // object id
	callerApp    = "44444444-4444-4444-8444-444444444444" // client id
)

// Options are the settings of a Server. The zero value works.
type Options struct {
	Kubeconfig []byte               // what az aks get-credentials receives
	Registry   string               // URL of a real registry; without one, images are only names and digests
	Builder    Builder              // what az acr run builds with; without one, nothing is built
	Log        func(string, ...any) // receives requests that the server does not know
}

// Server is the Resource Manager. Create it with Start.
type Server struct {
	options Options
	folder  string
	url     string // https://127.0.0.1:PORT
	token   string // http://127.0.0.1:PORT, of the managed identity and of Control
	servers []*http.Server

	mu          sync.Mutex
	resources   map[string]*resource  // by path in lower case
	operations  map[string]*operation // by name
	providers   map[string]string     // registration state by name in lower case
	taken       map[string]bool       // names of registries that belong to others
	images      map[string]string     // digests by REPOSITORY:TAG
	blobs       map[string]*blob
	requests    []Request
	faults      []*Fault
	cores       int  // limit of the quota
	contributor bool // whether the caller may not assign roles
	onChange    func(Request)
	ids         int
}

// Request is one request that the server received.
type Request struct {
	Method string
	Path   string // as it was sent
	Query  url.Values
	Body   map[string]any // nil if there is none, or if it is no JSON object
	Status int            // of the response
}

// String returns the method, the path and the status.
func (r Request) String() string { return fmt.Sprintf("%s %s %d", r.Method, r.Path, r.Status) }

// Start starts a server on loopback. It writes its certificate and az's configuration
// below folder, which must be an absolute path.
func Start(folder string, options Options) (*Server, error) {
	if options.Log == nil {
		options.Log = func(string, ...any) {}
	}
	s := &Server{options: options, folder: folder}
	s.Reset()
	if err := os.RemoveAll(s.Configuration()); err != nil { // it names the port of an earlier server
		return nil, err
	}
	certificate, err := createCertificate(filepath.Join(folder, "ca.pem"))
	if err != nil {
		return nil, err
	}
	secure, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	plain, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, errors.Join(err, secure.Close())
	}
	s.url, s.token = "https://"+secure.Addr().String(), "http://"+plain.Addr().String()
	manager := &http.Server{Handler: http.HandlerFunc(s.serve), ReadHeaderTimeout: time.Minute, TLSConfig: certificate}
	control := &http.Server{Handler: s.control(), ReadHeaderTimeout: time.Minute}
	s.servers = []*http.Server{manager, control}
	go func() { _ = manager.ServeTLS(secure, "", "") }() // fails only once it is closed
	go func() { _ = control.Serve(plain) }()
	return s, nil
}

// Close stops the server.
func (s *Server) Close() error {
	var failures []error
	for _, server := range s.servers {
		failures = append(failures, server.Close())
	}
	return errors.Join(failures...)
}

// Reset deletes all resources, faults and recorded requests.
func (s *Server) Reset() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.resources, s.operations, s.providers = map[string]*resource{}, map[string]*operation{}, map[string]string{}
	s.taken, s.images, s.blobs = map[string]bool{}, map[string]string{}, map[string]*blob{}
	s.requests, s.faults, s.ids = nil, nil, 0
	s.cores, s.contributor, s.onChange = 100, false, nil
}

// Control is the URL, without TLS, of what a shell needs beside az: GET /requests, POST
// /faults with a Fault, POST /reset, POST /unregister?provider=NAME.
func (s *Server) Control() string { return s.token }

func (s *Server) control() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /token", func(w http.ResponseWriter, r *http.Request) {
		writeJSON(w, http.StatusOK, s.issueToken(r.URL.Query().Get("resource")))
	})
	mux.HandleFunc("GET /requests", func(w http.ResponseWriter, _ *http.Request) {
		for _, r := range s.Requests() {
			body, _ := json.Marshal(r.Body)
			fmt.Fprintf(w, "%s\t%s\n", r, body)
		}
	})
	mux.HandleFunc("POST /faults", func(w http.ResponseWriter, r *http.Request) {
		var f Fault
		if err := json.NewDecoder(r.Body).Decode(&f); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		s.Inject(f)
	})
	mux.HandleFunc("POST /reset", func(http.ResponseWriter, *http.Request) { s.Reset() })
	mux.HandleFunc("POST /unregister", func(_ http.ResponseWriter, r *http.Request) { s.Unregister(r.URL.Query().Get("provider")) })
	return mux
}

// URL is the address of the Resource Manager.
func (s *Server) URL() string { return s.url }

// Environment returns what az needs in its environment.
func (s *Server) Environment() []string {
	return []string{
		"AZURE_CONFIG_DIR=" + s.Configuration(),
		"AZURE_CORE_COLLECT_TELEMETRY=no",
		"REQUESTS_CA_BUNDLE=" + filepath.Join(s.folder, "ca.pem"),
		"IDENTITY_ENDPOINT=" + s.token + "/token",
		"IDENTITY_HEADER=x",
	}
}

// Login returns the commands of a shell that log az in.
func (s *Server) Login() string {
	return "az cloud register --name tandem --endpoint-resource-manager " + s.url + ` --output none
az cloud set --name tandem --output none
az login --identity --output none
`
}

// Configuration is the folder of az's configuration.
func (s *Server) Configuration() string { return filepath.Join(s.folder, "azure") }

// Requests returns what the server has received since Start or Reset.
func (s *Server) Requests() []Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.requests)
}

// Changes returns the requests that changed something, or tried to.
func (s *Server) Changes() []Request {
	return slices.DeleteFunc(s.Requests(), func(r Request) bool { return !r.changes() })
}

func (r Request) changes() bool {
	return r.Method != http.MethodGet && r.Method != http.MethodHead && (r.Method != http.MethodPost || !readsOnly.MatchString(r.Path))
}

// OnChange calls a function after each response to a request that changed something, in
// a goroutine of its own.
func (s *Server) OnChange(call func(Request)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.onChange = call
}

// readsOnly matches the POST requests that change nothing. Azure uses POST where the response is secret or the
// request is long.
var readsOnly = regexp.MustCompile(`(?i)/(list\w+|checknameavailability|validate|whatif|getbyids|exchange|token)$`)

// call is one request while it is served.
type call struct {
	http  *http.Request
	path  string // in lower case
	sent  string // as it was sent
	query url.Values
	match []string       // of the route's pattern
	body  map[string]any // never nil
	raw   []byte
}

// response is what a handler returns.
type response struct {
	status int
	header http.Header
	body   any // nil for none; []byte is sent as it is
}

func ok(body any) response { return response{status: http.StatusOK, body: body} }

func list(items []any) response { return ok(object{"value": items}) }

func failure(status int, code, format string, args ...any) response {
	return response{status: status, body: object{"error": object{"code": code, "message": fmt.Sprintf(format, args...)}}}
}

type object = map[string]any

// route is a handler for a method and paths in lower case. The handler runs under s.mu.
type route struct {
	method string
	path   *regexp.Regexp
	handle func(*Server, *call) response
}

func on(method, path string, handle func(*Server, *call) response) route {
	return route{method, regexp.MustCompile("^" + path + "$"), handle}
}

// routes are tried in order. What none of them matches is a resource.
var routes = slices.Concat(fixedRoutes, operationRoutes, clusterRoutes, registryRoutes, deploymentRoutes, graphRoutes, resourceRoutes)

var slashes = regexp.MustCompile("/+")

func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	if strings.HasPrefix(r.URL.Path, "/v2/") {
		s.serveRegistry(w, r)
		return
	}
	raw, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	sent := strings.TrimSuffix(slashes.ReplaceAllString(r.URL.Path, "/"), "/")
	c := &call{http: r, path: strings.ToLower(sent), sent: sent, query: r.URL.Query(), raw: raw}
	// az adds a template to the JSON of a deployment without quotes around its key. Forms and archives are no JSON.
	_ = json.Unmarshal(bytes.Replace(raw, []byte(", template:{"), []byte(`, "template":{`), 1), &c.body)
	recorded := Request{Method: r.Method, Path: sent, Query: c.query, Body: c.body}
	if c.body == nil {
		c.body = object{}
	}

	s.mu.Lock()
	defer s.mu.Unlock()
	answer, failed := s.fail(c)
	if !failed {
		answer = s.dispatch(c)
	}
	recorded.Status = answer.status
	s.requests = append(s.requests, recorded)
	if s.onChange != nil && recorded.changes() {
		defer func(call func(Request)) { go call(recorded) }(s.onChange)
	}
	if answer.status == http.StatusNotImplemented {
		s.options.Log("not implemented: %s %s %s", r.Method, r.URL, raw)
	}
	for name, values := range answer.header {
		w.Header()[http.CanonicalHeaderKey(name)] = values
	}
	switch body := answer.body.(type) {
	case nil:
		w.WriteHeader(answer.status)
	case []byte:
		w.WriteHeader(answer.status)
		_, _ = w.Write(body)
	default:
		writeJSON(w, answer.status, body)
	}
}

func (s *Server) dispatch(c *call) response {
	for _, r := range routes {
		if r.method != c.http.Method {
			continue
		}
		if c.match = r.path.FindStringSubmatch(c.path); c.match != nil {
			return r.handle(s, c)
		}
	}
	return failure(http.StatusNotImplemented, "NotImplemented", "the Resource Manager in memory does not know %s %s", c.http.Method, c.sent)
}

func writeJSON(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // the client may be gone
}

// newID returns a UUID that no other call returns. Equal runs get equal ids.
func (s *Server) newID() string {
	s.ids++
	return fmt.Sprintf("aaaaaaaa-0000-4000-8000-%012x", s.ids)
}

// Wait returns when ctx ends, after the server is closed.
func (s *Server) Wait(ctx context.Context) error {
	<-ctx.Done()
	return s.Close()
}
