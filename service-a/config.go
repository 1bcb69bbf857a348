package main

import (
	"cmp"
	"errors"
	"net/url"
	"strconv"
	"strings"
	"time"

	"example.com/tandem/kit/config"
	"example.com/tandem/kit/identity"
)

// Config holds the settings of the service and their defaults.
type Config struct {
	config.Server
	ServiceBHTTPURL         url.URL       `env:"SERVICE_B_HTTP_URL" envDefault:"http://service-b" help:"URL of service-b over HTTP: the name of its Service"`
	ServiceBGRPCTarget      string        `env:"SERVICE_B_GRPC_TARGET" envDefault:"dns:///service-b-headless:9090" help:"target of service-b over gRPC: a name that resolves to its pods"`
	ServiceBGRPCServiceAddr string        `env:"SERVICE_B_GRPC_SERVICE_ADDR" help:"HOST:PORT of service-b's Service over gRPC, such as service-b:9090: a third way to call, via=grpc-service, which shows that a virtual IP keeps all calls of a connection on one pod; by default none"`
	CallTimeout             time.Duration `env:"CALL_TIMEOUT" envDefault:"2s" help:"deadline of one call to service-b, including its retries; also how late a message of a stream may be"`

	ServiceBGRPCTLS    config.OnOff `env:"SERVICE_B_GRPC_TLS" envDefault:"off" help:"whether to use TLS for gRPC calls, on or off; for HTTP, set an https:// URL"`
	ServiceBCAFile     string       `env:"SERVICE_B_CA_FILE" help:"file of the CA certificates (PEM) that verify service-b's certificate; by default the system's CAs"`
	ServiceBServerName string       `env:"SERVICE_B_SERVER_NAME" help:"name in service-b's certificate; by default the host of the URL or target"`
	ServiceBCertFile   string       `env:"SERVICE_B_CERT_FILE" help:"file of the client certificate (PEM) for service-b"`
	ServiceBKeyFile    string       `env:"SERVICE_B_KEY_FILE" help:"file of the key (PEM) of the client certificate"`

	ServiceBPodsURL url.URL `env:"SERVICE_B_PODS_URL" envDefault:"http://service-b-pods:8080" help:"with FAULTS=on, where the page sets faults: a name that resolves to every pod of service-b, also those that are not ready, and the pods' port"`
	TraceURL        string  `env:"TRACE_URL" help:"URL of a trace in a trace UI, with {traceId} in it: the page then links to the trace of each call; by default none"`

	ServiceBTokenFile  string `env:"SERVICE_B_TOKEN_FILE" help:"file of the token that says to service-b who calls, such as a projected ServiceAccount token; by default none is sent"`
	ServiceBTokenScope string `env:"SERVICE_B_TOKEN_SCOPE" help:"instead of the file: scope of service-b at Entra, such as api://service-b/.default; needs workload identity"`
	IdentityCheckScope string `env:"IDENTITY_CHECK_SCOPE" help:"scope for which /health gets a token by workload identity, to show that it works; sent nowhere; by default no check"`
	identity.Workload
}

// Validate returns an error for each value that parses but is not valid.
func (c Config) Validate() error {
	errs := []error{c.Server.Validate(), c.Workload.Validate(), config.Positive("CALL_TIMEOUT", c.CallTimeout)}
	u := c.ServiceBHTTPURL
	_, badPort := strconv.ParseUint(cmp.Or(u.Port(), "80"), 10, 16)
	if u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.User != nil || badPort != nil {
		errs = append(errs, config.InvalidURL("SERVICE_B_HTTP_URL", u.String(), "want http://HOST[:PORT] or https://HOST[:PORT]"))
	}
	if addr := c.ServiceBGRPCServiceAddr; addr != "" && (strings.HasPrefix(addr, ":") || config.Addr("", addr) != nil) {
		errs = append(errs, config.Invalid("SERVICE_B_GRPC_SERVICE_ADDR", addr, "want HOST:PORT, such as service-b:9090"))
	}
	if u := c.ServiceBPodsURL; u.Scheme != "http" || u.Hostname() == "" || u.User != nil || strings.Trim(u.Path, "/") != "" {
		errs = append(errs, config.Invalid("SERVICE_B_PODS_URL", u.Redacted(), "want http://HOST[:PORT]"))
	}
	if c.ServiceBTokenFile != "" && c.ServiceBTokenScope != "" {
		errs = append(errs, config.Invalid("SERVICE_B_TOKEN_SCOPE", c.ServiceBTokenScope, "want either this or SERVICE_B_TOKEN_FILE"))
	}
	if c.ServiceBTokenScope != "" && !c.Complete() {
		errs = append(errs, config.Invalid("SERVICE_B_TOKEN_SCOPE", c.ServiceBTokenScope, "want AZURE_CLIENT_ID, AZURE_TENANT_ID and AZURE_FEDERATED_TOKEN_FILE with it"))
	}
	if t := c.TraceURL; t != "" {
		u, err := url.Parse(strings.ReplaceAll(t, traceID, "0"))
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || !strings.Contains(t, traceID) {
			errs = append(errs, config.Invalid("TRACE_URL", t, "want http://HOST/… or https://HOST/… with "+traceID+" in it"))
		}
	}
	return errors.Join(errs...)
}

// traceID is the placeholder in TRACE_URL.
const traceID = "{traceId}"
