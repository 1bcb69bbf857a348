package main

import (
	"errors"
	"net/url"
	"time"

	"example.com/tandem/kit/config"
)

// Config holds the settings of the service and their defaults.
type Config struct {
	config.Server
	ServiceBHTTPURL    url.URL       `env:"SERVICE_B_HTTP_URL" envDefault:"http://service-b" help:"service-b over HTTP: its Service's name"`
	ServiceBGRPCTarget string        `env:"SERVICE_B_GRPC_TARGET" envDefault:"dns:///service-b-headless:9090" help:"service-b over gRPC: a name that stands for its pods"`
	CallTimeout        time.Duration `env:"CALL_TIMEOUT" envDefault:"2s" help:"of one call to service-b, its retries included"`
}

// Validate returns an error for every value that parses but cannot work.
func (c Config) Validate() error {
	errs := []error{c.Server.Validate(), config.Positive("CALL_TIMEOUT", c.CallTimeout)}
	if u := c.ServiceBHTTPURL; u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" {
		errs = append(errs, config.Bad("SERVICE_B_HTTP_URL", u.String(), "want http://HOST[:PORT]"))
	}
	return errors.Join(errs...)
}
