// Package grpcclient makes a grpc.ClientConn for calls to another service by
// its name: balanced over every address behind the name, with a deadline,
// retries of idempotent methods within a budget, trace context and metrics.
//
// Use it for services that are reached by DNS. Do not use it with xDS, sockets
// of the file system, or a service config of your own: New refuses those targets,
// and replaces that config.
package grpcclient

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net/url"
	"time"

	middleware "github.com/grpc-ecosystem/go-grpc-middleware/providers/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	_ "google.golang.org/grpc/health" // without it healthCheckConfig is ignored
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/resolver"

	"example.com/tandem/kit/call"
	"example.com/tandem/kit/internal/lookup"
	"example.com/tandem/kit/retry"
	"example.com/tandem/kit/telemetry"
)

const (
	// pingEvery is how often a connection is pinged (gRPC allows no less), and
	// pingTimeout how long the response may take. A dead peer is detected after
	// pingEvery + pingTimeout.
	pingEvery, pingTimeout = 10 * time.Second, 5 * time.Second
	// connectTimeout of one address, TLS and HTTP/2 handshake included.
	connectTimeout = time.Second
	// maxBackoff between attempts to connect. gRPC's own, 2 minutes, would keep
	// calls failing for as long after a server is back.
	maxBackoff = 2 * time.Second
)

// Options of New. Timeout and Telemetry are required.
type Options struct {
	// Timeout of one unary call, including its retries.
	Timeout time.Duration
	// MaxResponse is the largest message taken, in bytes; 0 is 1 MiB.
	MaxResponse int
	// TLS encrypts the connections; nil is plaintext, as between pods of a
	// cluster or under a mesh. ServerName is the target's host where it is empty.
	TLS       *tls.Config
	Telemetry *telemetry.Telemetry
}

// New makes a client for a target such as dns:///service-b-headless:9090. It
// does nothing until the first call; an error is one of the target's form.
//
// To balance, the name must stand for the pods themselves: a headless Service.
// Behind a ClusterIP there is one address, one connection and so one pod.
//
// Methods are retried if their .proto says that they are idempotent (option
// idempotency_level). Streams are not: only their reader knows where they broke.
//
// Failed calls return a *call.Error, of which status.Code works too.
func New(target string, o Options) (*grpc.ClientConn, error) {
	if o.MaxResponse == 0 {
		o.MaxResponse = 1 << 20
	}
	transport := insecure.NewCredentials()
	if o.TLS != nil {
		transport = credentials.NewTLS(o.TLS)
	}
	metrics := call.Register(o.Telemetry.Metrics, middleware.NewClientMetrics(middleware.WithClientHandlingTimeHistogram()))
	state := &state{}
	calls := &interceptors{state: state, timeout: o.Timeout, calls: call.NewCounter(o.Telemetry.Metrics), budget: retry.NewBudget()}

	conn, err := grpc.NewClient(target, append(traced(o.Telemetry),
		grpc.WithTransportCredentials(transport),
		grpc.WithResolvers(builder{state}),
		grpc.WithContextDialer(state.dial),
		grpc.WithDisableServiceConfig(), // saves a TXT query for each lookup
		grpc.WithDefaultServiceConfig(serviceConfig),
		grpc.WithConnectParams(grpc.ConnectParams{
			MinConnectTimeout: connectTimeout,
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: maxBackoff},
		}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: pingEvery, Timeout: pingTimeout, PermitWithoutStream: true}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(o.MaxResponse)),
		grpc.WithChainUnaryInterceptor(calls.unary, metrics.UnaryClientInterceptor()),
		grpc.WithChainStreamInterceptor(calls.stream, metrics.StreamClientInterceptor()),
	)...)
	if err != nil {
		return nil, fmt.Errorf("target %q: %w", target, err)
	}
	// gRPC takes targets that cannot work here, and fails at the first call.
	u, err := url.Parse(conn.CanonicalTarget())
	if err == nil {
		var port string
		if calls.peer, port, err = hostPort(resolver.Target{URL: *u}); err == nil {
			state.name = lookup.New(calls.peer, port, nil)
			return conn, nil
		}
	}
	return nil, fmt.Errorf("target %q: %w", target, errors.Join(err, conn.Close()))
}

// serviceConfig is how to balance, in the JSON that gRPC takes
// (grpc/service_config.proto). Clients watch each server's health, and send it
// nothing while it is NOT_SERVING. (pick_first, gRPC's default policy, does not.)
const serviceConfig = `{
	"loadBalancingConfig": [{"` + policyName + `": {}}],
	"healthCheckConfig": {"serviceName": ""}
}`
