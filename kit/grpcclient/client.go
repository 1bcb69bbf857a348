// Package grpcclient makes a grpc.ClientConn for calls to another service by
// its name: balanced over every address behind the name, with a deadline,
// retries of idempotent methods within a budget, trace context and metrics.
//
// Use it for services that are reached by DNS. Do not use it with xDS, Unix
// sockets, or a service config of your own: New refuses such targets, and
// replaces that config.
//
// A unary call passes through the files in this order:
//
//	client.go      New makes the connection, and sets up the interceptors
//	call.go        unary: sets the deadline; package retry makes up to three attempts
//	token.go       authorize adds the token that says who calls
//	idempotent.go  decides whether the method may be retried
//	trace.go       attempt makes an attempt a span, or only sends the caller's trace context
//	picker.go      Pick: gRPC calls it for each attempt to choose the endpoint
//	outcome.go     corrects a status that a proxy caused; what the status means for a
//	               retry, and for the endpoint
//	connstate.go   classify: why no server was reached, as a call.Class
//	call.go        unary: fills in call.Record: the server's address, the attempts
//
// stream.go does the same for streams. Skip on a first reading: balancer.go, which
// gives gRPC the picker, resolver.go, which keeps the addresses current, and view.go, which
// shows the endpoints to a caller that watches them.
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
	_ "google.golang.org/grpc/health" // healthCheckConfig needs this import
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/resolver"

	"example.com/tandem/kit/call"
	"example.com/tandem/kit/identity"
	"example.com/tandem/kit/internal/lookup"
	"example.com/tandem/kit/retry"
	"example.com/tandem/kit/telemetry"
)

const (
	// pingEvery is how often a connection is pinged (gRPC allows no less), and
	// pingTimeout how long the response may take. A dead peer is detected after
	// pingEvery + pingTimeout.
	pingEvery, pingTimeout = 10 * time.Second, 5 * time.Second
	// connectTimeout is the least time for one address, including the TLS and HTTP/2
	// handshakes; gRPC extends it to the current backoff.
	connectTimeout = time.Second
	// maxBackoff is the longest pause between dials, before jitter. With gRPC's default
	// calls could fail for 2 minutes after a server is back.
	maxBackoff = 2 * time.Second
)

// Options holds the settings of New. Timeout and Telemetry are required.
type Options struct {
	// Timeout of one unary call, including its retries.
	Timeout time.Duration
	// MaxResponse is the largest message accepted, in bytes; 0 means 1 MiB.
	MaxResponse int
	// TLS encrypts the connections; nil means plaintext, as between pods of a
	// cluster or in a mesh. An empty ServerName means the target's host.
	TLS *tls.Config
	// Token says who calls; nil means that calls do not. A call without a token fails with
	// class call.Token. Health watches send none.
	Token     *identity.Source
	Telemetry *telemetry.Telemetry
	// View, if not nil, shows the endpoints of the client from then on.
	View *View
}

// New makes a client for a target such as dns:///service-b-headless:9090. It
// returns an error if the target is malformed; it connects on the first call.
//
// For the client to balance calls, the name must resolve to the pods: use a headless
// Service. A ClusterIP is one address (or two: IPv4 and IPv6). What is behind it chooses
// the pod: kube-proxy for each connection, the sidecar of a mesh for each call. The
// client then has no other endpoint to prefer, and does not watch health.
//
// A failed call is retried if its method is idempotent (option idempotency_level in
// the .proto), or if nothing was sent. Streams are not retried.
//
// Failed calls return a *call.Error; status.Code works on it.
func New(target string, o Options) (*grpc.ClientConn, error) {
	if o.MaxResponse == 0 {
		o.MaxResponse = 1 << 20
	}
	transport := insecure.NewCredentials()
	if o.TLS != nil {
		transport = credentials.NewTLS(o.TLS)
	}
	metrics := call.Register(o.Telemetry.Metrics, middleware.NewClientMetrics(middleware.WithClientHandlingTimeHistogram()))
	state := &connState{}
	perCall := &interceptors{timeout: o.Timeout, token: o.Token, conn: state, budget: retry.NewBudget(), calls: call.NewCounter(o.Telemetry.Metrics)}
	traces := newTracer(o.Telemetry)
	conn, err := grpc.NewClient(target,
		grpc.WithTransportCredentials(transport),
		grpc.WithResolvers(builder{state}),
		grpc.WithContextDialer(state.dial),
		grpc.WithDisableServiceConfig(), // saves a TXT query in each lookup
		grpc.WithDefaultServiceConfig(serviceConfig),
		grpc.WithConnectParams(grpc.ConnectParams{
			MinConnectTimeout: connectTimeout,
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: maxBackoff},
		}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: pingEvery, Timeout: pingTimeout, PermitWithoutStream: true}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(o.MaxResponse)),
		grpc.WithChainUnaryInterceptor(perCall.unary, metrics.UnaryClientInterceptor(middleware.WithExemplarFromContext(telemetry.Exemplar)), traces.unary),
		grpc.WithChainStreamInterceptor(perCall.stream, metrics.StreamClientInterceptor(middleware.WithExemplarFromContext(telemetry.Exemplar)), traces.stream),
	)
	if err != nil {
		return nil, fmt.Errorf("target %q: %w", target, err)
	}
	// gRPC accepts targets that builder cannot resolve, and fails on the first call.
	u, err := url.Parse(conn.CanonicalTarget())
	if err == nil {
		var port string
		if perCall.host, port, err = hostPort(resolver.Target{URL: *u}); err == nil {
			state.name = lookup.New(perCall.host, port, nil)
			if o.View != nil {
				o.View.conn, o.View.state = conn, state
			}
			return conn, nil
		}
	}
	return nil, fmt.Errorf("target %q: %w", target, errors.Join(err, conn.Close()))
}

// serviceConfig selects the balancing policy, in the JSON form of
// grpc/service_config.proto. With it the client can watch the health of each server
// and send no calls to a server that is NOT_SERVING; update in resolver.go decides
// whether it does.
const serviceConfig = `{
	"loadBalancingConfig": [{"` + policyName + `": {}}],
	"healthCheckConfig": {"serviceName": ""}
}`
