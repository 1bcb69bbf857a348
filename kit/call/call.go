// Package call holds what calls over HTTP and gRPC have in common: a record of how
// the call went (Record), the class of a failure (Class), and the metric of outcomes
// (Counter).
package call

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Class is the kind of a failure. The set is fixed, so it can be a metric label.
type Class string

// The classes. OK is not a failure.
const (
	OK          Class = "ok"
	DNS         Class = "dns"         // the name has no address, or the DNS server did not respond
	Refused     Class = "refused"     // nothing listens on the address
	Timeout     Class = "timeout"     // the deadline passed
	Unavailable Class = "unavailable" // the peer is overloaded, draining or unreachable, or broke the connection
	Denied      Class = "denied"      // the peer, or a proxy in front of it, refuses this caller
	Token       Class = "token"       // the caller has no token of its own that it could send
	Canceled    Class = "canceled"    // the caller canceled the call
	Other       Class = "other"       // anything else, such as a response that cannot be decoded
)

// Failures lists every class except OK.
var Failures = [...]Class{DNS, Refused, Timeout, Unavailable, Denied, Token, Canceled, Other}

// StatusCanceled is the status, as nginx uses it, of a request whose client
// disconnected. The client rarely receives it: it is for metrics and logs.
const StatusCanceled = 499

// HTTPStatus returns the status with which a server reports that a call of its own
// failed: 503 if a retry may help, 504 if the deadline passed, 502 if the peer's
// response was unusable. Denied is 502, too: the peer refused the server, not the
// server's caller.
func (c Class) HTTPStatus() int {
	switch c {
	case OK:
		return http.StatusOK
	case DNS, Refused, Unavailable, Token:
		return http.StatusServiceUnavailable
	case Timeout:
		return http.StatusGatewayTimeout
	case Canceled:
		return StatusCanceled
	default:
		return http.StatusBadGateway
	}
}

// Error is the error of a failed call, with its class.
type Error struct {
	Class Class
	Err   error
}

func (e *Error) Error() string { return e.Err.Error() }

// Unwrap returns the error without its class.
func (e *Error) Unwrap() error { return e.Err }

// ClassOf returns the class of the Error in err's chain. Without one, it classifies
// the network errors of the standard library. The class of nil is OK.
func ClassOf(err error) Class {
	if err == nil {
		return OK // errors.As below would allocate
	}
	var classed *Error
	var dns *net.DNSError
	var network net.Error
	switch {
	case errors.As(err, &classed):
		return classed.Class
	case errors.Is(err, context.Canceled):
		return Canceled
	case errors.As(err, &dns):
		return DNS // even if the deadline passed: DNS is more specific than Timeout
	case isUnreachable(err):
		return Unavailable // more specific than Timeout, too
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		return Timeout
	case errors.Is(err, syscall.ECONNREFUSED):
		return Refused
	case errors.As(err, &network) && network.Timeout():
		return Timeout
	case isBroken(err):
		return Unavailable
	default:
		return Other
	}
}

// ClassOfStatus returns the class of an HTTP response's status. Below 500 it is OK,
// except for 401 and 403.
func ClassOfStatus(status int) Class {
	switch {
	case status == http.StatusUnauthorized, status == http.StatusForbidden:
		return Denied
	case status < 500:
		return OK
	case status == http.StatusServiceUnavailable, status == http.StatusBadGateway:
		return Unavailable
	case status == http.StatusGatewayTimeout:
		return Timeout
	default:
		return Other
	}
}

// StatusOf returns the gRPC status in err's chain as the server sent it, or nil.
// (status.Convert would add the texts of wrapping errors to its message.)
func StatusOf(err error) *status.Status {
	var s interface{ GRPCStatus() *status.Status }
	if errors.As(err, &s) {
		return s.GRPCStatus()
	}
	return nil
}

// ClassOfCode returns the class of a gRPC status code.
func ClassOfCode(code codes.Code) Class {
	switch code {
	case codes.OK:
		return OK
	case codes.Canceled:
		return Canceled
	case codes.DeadlineExceeded:
		return Timeout
	case codes.Unavailable:
		return Unavailable
	case codes.PermissionDenied, codes.Unauthenticated:
		return Denied
	default:
		return Other
	}
}

// isUnreachable reports whether a connection timed out while it was opened.
func isUnreachable(err error) bool {
	op, ok := errors.AsType[*net.OpError](err)
	return ok && op.Op == "dial" && op.Timeout()
}

// isBroken reports whether a connection was closed or lost during the call.
func isBroken(err error) bool {
	for _, e := range []error{io.EOF, io.ErrUnexpectedEOF, syscall.ECONNRESET, syscall.EPIPE, syscall.ECONNABORTED, syscall.EHOSTUNREACH, syscall.ENETUNREACH} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// Balancer says who chooses the pod that serves a call.
type Balancer string

// The balancers.
const (
	// BalancedByClient means that the name has several addresses, usually one for each
	// pod, and the client chooses one of them for each attempt.
	BalancedByClient Balancer = "client"
	// BalancedByNetwork means that the name has a single address: a ClusterIP, for which
	// kube-proxy or a sidecar chooses the pod, or the address of a single pod.
	BalancedByNetwork Balancer = "network"
)

// BalancerOf returns who balances the calls to a name that has these addresses
// (host:port), or "" if it has none. One IPv4 and one IPv6 address count as a single
// address: they are those of a ClusterIP with both families.
func BalancerOf(addrs []string) Balancer {
	isIPv6 := func(i int) bool { return strings.HasPrefix(addrs[i], "[") }
	switch {
	case len(addrs) == 0:
		return ""
	case len(addrs) == 1, len(addrs) == 2 && isIPv6(0) != isIPv6(1):
		return BalancedByNetwork
	default:
		return BalancedByClient
	}
}

// Endpoint is one address behind a name, as a client knows it now.
type Endpoint struct {
	Addr string // host:port
	// NotReady means that the client sends no calls to the address: gRPC health says that
	// the server is not ready, or no connection could be opened. Only clients that watch
	// their endpoints set it.
	NotReady bool
}

// Record is what a client records of one call.
type Record struct {
	// Addresses that the target's name resolved to, as host:port.
	Addresses []string
	// BalancedBy says who chose the pod; empty if there are no addresses.
	BalancedBy Balancer
	// Peer is the address of the last attempt; empty if no connection was opened.
	Peer string
	// Attempts is the number of attempts, 1 for a call without a retry.
	Attempts int

	tries [maxTries]Try // in the Record, so that a Try costs no allocation
}

// maxTries is retry.MaxAttempts: a Record has room for every attempt of a call.
const maxTries = 3

// Try is one attempt of a call.
type Try struct {
	Peer       string  `json:"peer,omitempty"` // empty if no connection was opened
	DurationMS float64 `json:"durationMs"`
	Class      Class   `json:"class"`
	Reason     string  `json:"reason,omitempty"` // why it failed
}

// maxReason is the length of the longest Reason, in bytes.
const maxReason = 300

// Tried records the next attempt. The reason of a failure is the text of err.
func (r *Record) Tried(peer string, took time.Duration, class Class, err error) {
	if r.Attempts++; r.Attempts > maxTries {
		return
	}
	t := &r.tries[r.Attempts-1]
	*t = Try{Peer: peer, DurationMS: float64(took.Microseconds()) / 1000, Class: class}
	if err != nil {
		t.Reason = Shorten(err.Error(), maxReason)
	}
}

// Shorten returns a text as valid UTF-8, with at most maxBytes bytes of it. "…" follows if
// the text was longer.
func Shorten(text string, maxBytes int) string {
	text = strings.ToValidUTF8(text, "\ufffd")
	if len(text) <= maxBytes {
		return text
	}
	return strings.ToValidUTF8(text[:maxBytes], "") + "…"
}

// Tries returns the attempts in their order.
func (r *Record) Tries() []Try { return r.tries[:min(r.Attempts, maxTries)] }

type recordKey struct{}

// WithRecord returns a context for one call, and the Record that the client fills in.
// Read it after the call has returned.
func WithRecord(ctx context.Context) (context.Context, *Record) {
	r := &Record{}
	return context.WithValue(ctx, recordKey{}, r), r
}

// RecordOf returns the Record of ctx, or a new one if ctx has none.
func RecordOf(ctx context.Context) *Record {
	if r, ok := ctx.Value(recordKey{}).(*Record); ok {
		return r
	}
	return &Record{}
}

// Counter is the metric client_calls_total{peer,transport,outcome}. Each call counts once,
// whatever its number of attempts; the outcome is a Class.
type Counter struct{ vec *prometheus.CounterVec }

// NewCounter registers the metric, or returns the one that another client registered.
func NewCounter(reg prometheus.Registerer) Counter {
	return Counter{Register(reg, prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "client_calls_total",
		Help: "Calls to other services, by peer, transport and outcome.",
	}, []string{"peer", "transport", "outcome"}))}
}

// Register registers a client's collector, or returns the equal one that another
// client registered. It panics, as MustRegister does, if a different collector has the
// same name.
func Register[C prometheus.Collector](reg prometheus.Registerer, c C) C {
	err := reg.Register(c)
	if registered, ok := errors.AsType[prometheus.AlreadyRegisteredError](err); ok {
		return registered.ExistingCollector.(C)
	}
	if err != nil {
		panic(err)
	}
	return c
}

// Add counts one call of a peer over a transport.
func (c Counter) Add(peer, transport string, outcome Class) {
	c.vec.WithLabelValues(peer, transport, string(outcome)).Inc()
}
