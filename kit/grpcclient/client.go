// Package grpcclient makes a grpc.ClientConn for calls to another service by
// its name: balanced over every address behind the name, with a deadline,
// retries of what is safe to repeat within a budget, trace context and metrics.
package grpcclient

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"time"

	middleware "github.com/grpc-ecosystem/go-grpc-middleware/providers/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	_ "google.golang.org/grpc/health" // without it healthCheckConfig is ignored
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/resolver"

	"example.com/tandem/kit/call"
	"example.com/tandem/kit/telemetry"
)

const (
	// pingEvery is how often a connection is asked whether its server is still
	// there (gRPC allows no less), and pingTimeout how long it may take to
	// answer: a server that vanished without a word is noticed after the sum.
	pingEvery, pingTimeout = 10 * time.Second, 5 * time.Second
	// connectTimeout of one address.
	connectTimeout = time.Second
	// maxBackoff between attempts to connect. gRPC's own, 2 minutes, would
	// keep calls failing for as long after a server has come back.
	maxBackoff = 2 * time.Second
)

// Options of New. Timeout and Telemetry are required.
type Options struct {
	// Timeout of one unary call, its retries included.
	Timeout time.Duration
	// Idempotent names what is safe to repeat: "pkg.Service/Method", or
	// "pkg.Service" for all of its methods. Streams are not: only who reads one
	// knows where it broke off.
	Idempotent []string
	// MaxAnswer is the largest message taken, in bytes; 0 is 1 MiB.
	MaxAnswer int
	Telemetry *telemetry.Telemetry
}

// New makes a client for a target such as dns:///service-b-headless:9090. It
// does nothing until the first call; an error is one of the target's form.
//
// To balance, the name must stand for the pods themselves: a headless Service.
// Behind a ClusterIP there is one address, one connection and so one pod.
//
// Failed calls return a *call.Error, of which status.Code works too.
func New(target string, o Options) (*grpc.ClientConn, error) {
	if o.MaxAnswer == 0 {
		o.MaxAnswer = 1 << 20
	}
	metrics := call.Register(o.Telemetry.Metrics, middleware.NewClientMetrics(middleware.WithClientHandlingTimeHistogram()))
	watch := &watcher{}
	name := peerName(target)
	calls := call.NewCounter(o.Telemetry.Metrics)

	conn, err := grpc.NewClient(target, append(traced(o.Telemetry),
		// Plaintext, as between all pods here. Under a mesh its sidecars
		// encrypt; without one, put TLS credentials here.
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithResolvers(builder{watch}),
		grpc.WithContextDialer(watch.dial),
		grpc.WithDisableServiceConfig(), // saves a TXT query a lookup
		grpc.WithDefaultServiceConfig(serviceConfig),
		grpc.WithConnectParams(grpc.ConnectParams{
			MinConnectTimeout: connectTimeout,
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: maxBackoff},
		}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: pingEvery, Timeout: pingTimeout, PermitWithoutStream: true}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(o.MaxAnswer)),
		grpc.WithStatsHandler(attempts{}),
		grpc.WithChainUnaryInterceptor(unary(o, name, calls, watch), metrics.UnaryClientInterceptor()),
		grpc.WithChainStreamInterceptor(stream(name, calls, watch), metrics.StreamClientInterceptor()),
	)...)
	if err != nil {
		return nil, fmt.Errorf("target %q: %w", target, err)
	}
	// gRPC itself would find this out at the first call.
	if u, _ := url.Parse(conn.CanonicalTarget()); u != nil && u.Scheme == (builder{}).Scheme() {
		if _, _, err := split(resolver.Target{URL: *u}); err != nil {
			return nil, fmt.Errorf("target %q: %w", target, errors.Join(err, conn.Close()))
		}
	}
	return conn, nil
}

// serviceConfig is how to balance, in the JSON that gRPC takes
// (grpc/service_config.proto). Clients watch each server's health, and send it
// nothing while it is NOT_SERVING. (pick_first, gRPC's default balancer, never
// looks.)
const serviceConfig = `{
	"loadBalancingConfig": [{"` + policyName + `": {}}],
	"healthCheckConfig": {"serviceName": ""}
}`

// peerName is the host that a target names, as a label for metrics.
func peerName(target string) string {
	endpoint := target[strings.LastIndex(target, "/")+1:]
	if host, _, err := net.SplitHostPort(endpoint); err == nil {
		return host
	}
	return endpoint
}
