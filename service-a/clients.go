package main

import (
	"errors"

	"example.com/tandem/kit/config"
	"example.com/tandem/kit/grpcclient"
	"example.com/tandem/kit/health"
	"example.com/tandem/kit/httpclient"
	"example.com/tandem/kit/identity"
	"example.com/tandem/kit/telemetry"
	"example.com/tandem/service-a/internal/backend"
	"example.com/tandem/service-a/internal/live"
)

// clients holds the clients of service-b, one for each transport.
type clients struct {
	http *backend.HTTP
	grpc *backend.GRPC
	// grpcService calls through the Service's virtual IP, to show what that does; nil if it
	// is not configured.
	grpcService *backend.GRPC
	token       *identity.Source // nil if calls do not say who calls
	closers     []func() error
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
	c := clients{http: backend.NewHTTP(client, cfg.ServiceBHTTPURL), token: token}
	c.closers = append(c.closers, func() error { client.CloseIdleConnections(); return nil })

	if !cfg.ServiceBGRPCTLS {
		tls = nil // plaintext
	}
	options := grpcclient.Options{Timeout: cfg.CallTimeout, TLS: tls, Token: token, Telemetry: tel}
	if c.grpc, err = c.newGRPC(cfg.ServiceBGRPCTarget, options); err != nil {
		return clients{}, errors.Join(config.Invalid("SERVICE_B_GRPC_TARGET", cfg.ServiceBGRPCTarget, err.Error()), c.close())
	}
	if addr := cfg.ServiceBGRPCServiceAddr; addr != "" {
		if c.grpcService, err = c.newGRPC("dns:///"+addr, options); err != nil {
			return clients{}, errors.Join(config.Invalid("SERVICE_B_GRPC_SERVICE_ADDR", addr, err.Error()), c.close())
		}
	}
	return c, nil
}

// newGRPC creates a client for gRPC.
func (c *clients) newGRPC(target string, options grpcclient.Options) (*backend.GRPC, error) {
	options.View = &grpcclient.View{}
	conn, err := grpcclient.New(target, options)
	if err != nil {
		return nil, err
	}
	c.closers = append(c.closers, conn.Close)
	return backend.NewGRPC(conn, options.View, options.Timeout), nil
}

// close closes the clients.
func (c *clients) close() (err error) {
	for _, closer := range c.closers {
		err = errors.Join(err, closer())
	}
	return err
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

// ways returns the ways of calling service-b, with their values of ?via=.
func (c *clients) ways() []live.Way {
	ways := []live.Way{{Via: "http", Backend: c.http}, {Via: "grpc", Backend: c.grpc}}
	if c.grpcService != nil {
		ways = append(ways, live.Way{Via: "grpc-service", Backend: c.grpcService})
	}
	return ways
}

// addChecks adds service-b over each transport, and the tokens, to /health. service-a is not
// ready without a token for service-b: its first calls would fail.
func (c *clients) addChecks(state *health.Health, cfg Config, tel *telemetry.Telemetry) {
	state.Check("service-b over http", backend.HealthCheck(c.http))
	state.Check("service-b over grpc", backend.HealthCheck(c.grpc))
	if c.token != nil {
		state.Require("token for service-b", c.token.HealthCheck)
	}
	if cfg.IdentityCheckScope != "" {
		state.CheckOutput("workload identity", identity.FromEntra(cfg.Workload, cfg.IdentityCheckScope, tel).HealthCheck)
	}
}
