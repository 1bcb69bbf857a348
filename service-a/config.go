package main

import (
	"cmp"
	"errors"
	"net/url"
	"strconv"
	"time"

	"example.com/tandem/kit/config"
)

// Config holds the settings of the service and their defaults.
type Config struct {
	config.Server
	ServiceBHTTPURL    url.URL       `env:"SERVICE_B_HTTP_URL" envDefault:"http://service-b" help:"URL of service-b over HTTP: the name of its Service"`
	ServiceBGRPCTarget string        `env:"SERVICE_B_GRPC_TARGET" envDefault:"dns:///service-b-headless:9090" help:"target of service-b over gRPC: a name that resolves to its pods"`
	CallTimeout        time.Duration `env:"CALL_TIMEOUT" envDefault:"2s" help:"deadline of one call to service-b, including its retries; also how late a message of a stream may be"`

	ServiceBGRPCTLS    config.OnOff `env:"SERVICE_B_GRPC_TLS" envDefault:"off" help:"whether to use TLS for gRPC calls, on or off; for HTTP, set an https:// URL"`
	ServiceBCAFile     string       `env:"SERVICE_B_CA_FILE" help:"file of the CA certificates (PEM) that verify service-b's certificate; by default the system's CAs"`
	ServiceBServerName string       `env:"SERVICE_B_SERVER_NAME" help:"name in service-b's certificate; by default the host of the URL or target"`
	ServiceBCertFile   string       `env:"SERVICE_B_CERT_FILE" help:"file of the client certificate (PEM) for service-b"`
	ServiceBKeyFile    string       `env:"SERVICE_B_KEY_FILE" help:"file of the key (PEM) of the client certificate"`
}

// Validate returns an error for each value that parses but is not valid.
func (c Config) Validate() error {
	errs := []error{c.Server.Validate(), config.Positive("CALL_TIMEOUT", c.CallTimeout)}
	u := c.ServiceBHTTPURL
	_, badPort := strconv.ParseUint(cmp.Or(u.Port(), "80"), 10, 16)
	if u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.User != nil || badPort != nil {
		errs = append(errs, config.Invalid("SERVICE_B_HTTP_URL", u.Redacted(), "want http://HOST[:PORT] or https://HOST[:PORT]"))
	}
	return errors.Join(errs...)
}
