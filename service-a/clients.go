package main

import (
	"example.com/tandem/kit/config"
	"example.com/tandem/kit/grpcclient"
	"example.com/tandem/kit/health"
	"example.com/tandem/kit/httpclient"
	"example.com/tandem/kit/identity"
	"example.com/tandem/kit/telemetry"
	"example.com/tandem/service-a/internal/backend"
)

// clients holds the clients of service-b, one for each transport.
type clients struct {
	http  *backend.HTTP
	grpc  *backend.GRPC
	token *identity.Source // nil if calls do not say who calls
	close func() error
}

// newClients creates the clients. They connect at the first call.
func newClients(cfg Config, tel *telemetry.Telemetry) (clients, error) {
	tls, err := config.ClientTLS{
		CAFile:     cfg.ServiceBCAFile,
		ServerName: cfg.ServiceBServerName,
		CertFile:   cfg.ServiceBCertFile,
		KeyFile:    cfg.ServiceBKeyFile,
	}.Config()
	if err != nil {
		return clients{}, &config.Error{Msg: "SERVICE_B_CA_FILE, SERVICE_B_CERT_FILE, SERVICE_B_KEY_FILE: " + err.Error()}
	}
	token := newToken(cfg, tel)
	client := httpclient.New(httpclient.Options{Timeout: cfg.CallTimeout, TLS: tls, Token: token, Telemetry: tel})

	if !cfg.ServiceBGRPCTLS {
		tls = nil // plaintext
	}
	conn, err := grpcclient.New(cfg.ServiceBGRPCTarget, grpcclient.Options{Timeout: cfg.CallTimeout, TLS: tls, Token: token, Telemetry: tel})
	if err != nil {
		return clients{}, config.Invalid("SERVICE_B_GRPC_TARGET", cfg.ServiceBGRPCTarget, err.Error())
	}
	return clients{
		http:  backend.NewHTTP(client, cfg.ServiceBHTTPURL),
		grpc:  backend.NewGRPC(conn, cfg.CallTimeout),
		token: token,
		close: func() error {
			client.CloseIdleConnections()
			return conn.Close()
		},
	}, nil
}

// newToken returns the source of the token that says who calls, or nil.
func newToken(cfg Config, tel *telemetry.Telemetry) *identity.Source {
	switch {
	case cfg.ServiceBTokenFile != "":
		return identity.FromFile(cfg.ServiceBTokenFile, tel)
	case cfg.ServiceBTokenScope != "":
		return identity.FromEntra(cfg.Workload, cfg.ServiceBTokenScope, tel)
	default:
		return nil
	}
}

// byTransport returns the clients by the values of ?via=.
func (c clients) byTransport() map[string]backend.Backend {
	return map[string]backend.Backend{"http": c.http, "grpc": c.grpc}
}

// addChecks adds service-b over each transport, and the tokens, to /health. service-a is not
// ready without a token for service-b: its first calls would fail.
func (c clients) addChecks(state *health.Health, cfg Config, tel *telemetry.Telemetry) {
	state.Check("service-b over http", backend.HealthCheck(c.http))
	state.Check("service-b over grpc", backend.HealthCheck(c.grpc))
	if c.token != nil {
		state.Require("token for service-b", c.token.HealthCheck)
	}
	if cfg.IdentityCheckScope != "" {
		state.CheckOutput("workload identity", identity.FromEntra(cfg.Workload, cfg.IdentityCheckScope, tel).HealthCheck)
	}
}
