package main

import (
	"errors"
	"net/url"
	"slices"
	"strings"

	"example.com/tandem/kit/config"
	"example.com/tandem/kit/identity"
	"example.com/tandem/kit/telemetry"
)

// Config holds the settings of the service and their defaults.
type Config struct {
	config.Server
	GRPCAddr   string       `env:"GRPC_ADDR" envDefault:":9090" help:"address that gRPC listens on"`
	Reflection config.OnOff `env:"REFLECTION" envDefault:"off" help:"whether to serve gRPC reflection, on or off: grpcurl then needs no .proto file"`
	Message    string       `env:"MESSAGE" envDefault:"hello from service-b" help:"message in the data"`

	CallerIssuer          url.URL  `env:"CALLER_ISSUER" help:"issuer of the tokens that say who calls: https://HOST[/PATH], with OpenID Connect discovery; by default everybody may call"`
	CallerAudience        string   `env:"CALLER_AUDIENCE" help:"audience of those tokens, such as service-b"`
	CallerSubjects        []string `env:"CALLER_SUBJECTS" help:"subjects that may call, with commas between them, such as system:serviceaccount:NAMESPACE:service-a"`
	CallerIssuerCAFile    string   `env:"CALLER_ISSUER_CA_FILE" help:"file of the CA certificates (PEM) that verify the issuer's certificate; by default the system's CAs"`
	CallerIssuerTokenFile string   `env:"CALLER_ISSUER_TOKEN_FILE" help:"file of the token with which service-b asks the issuer for its keys; by default none"`
}

// Validate returns an error for each value that parses but is not valid.
func (c Config) Validate() error {
	errs := []error{c.Server.Validate(), config.Addr("GRPC_ADDR", c.GRPCAddr)}
	if c.CallerIssuer == (url.URL{}) {
		if c.CallerAudience != "" || len(c.CallerSubjects) > 0 || c.CallerIssuerCAFile != "" || c.CallerIssuerTokenFile != "" {
			// Without this error, everybody could call.
			errs = append(errs, config.Invalid("CALLER_ISSUER", "", "want an issuer, because another CALLER_ setting is set"))
		}
		return errors.Join(errs...)
	}
	if u := c.CallerIssuer; u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		errs = append(errs, config.InvalidURL("CALLER_ISSUER", u.String(), "want https://HOST[:PORT][/PATH]"))
	}
	if c.CallerAudience == "" {
		errs = append(errs, config.Invalid("CALLER_AUDIENCE", "", "want an audience, because CALLER_ISSUER is set"))
	}
	if len(c.CallerSubjects) == 0 || slices.ContainsFunc(c.CallerSubjects, func(s string) bool { return s == "" || strings.TrimSpace(s) != s }) {
		errs = append(errs, config.Invalid("CALLER_SUBJECTS", strings.Join(c.CallerSubjects, ","), "want one subject or more, with commas and no spaces between them"))
	}
	if c.CallerIssuerCAFile != "" {
		if _, err := (config.ClientTLS{CAFile: c.CallerIssuerCAFile}).Config(); err != nil {
			errs = append(errs, config.Invalid("CALLER_ISSUER_CA_FILE", c.CallerIssuerCAFile, err.Error()))
		}
	}
	return errors.Join(errs...)
}

// callers returns who may call, or nil for everybody.
func (c Config) callers(tel *telemetry.Telemetry) *identity.Verifier {
	if c.CallerIssuer == (url.URL{}) {
		return nil
	}
	return identity.NewVerifier(identity.Issuer{
		URL:       c.CallerIssuer.String(),
		CAFile:    c.CallerIssuerCAFile,
		TokenFile: c.CallerIssuerTokenFile,
	}, c.CallerAudience, c.CallerSubjects, tel)
}
