// Package call holds what is the same of a call over HTTP and over gRPC: what
// happened on the way (Record), what kind of failure it was (Class), and the
// metric that counts both.
package call

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"syscall"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Class is a kind of failure. The set is closed, so it can be a metric label.
type Class string

// The classes. OK is not a failure.
const (
	OK          Class = "ok"
	DNS         Class = "dns"         // the name has no address, or the resolver did not answer
	Refused     Class = "refused"     // an address answered, but nothing listens there
	Timeout     Class = "timeout"     // the deadline passed
	Unavailable Class = "unavailable" // the peer is overloaded, draining, not to be reached, or broke the connection off
	Canceled    Class = "canceled"    // the caller left
	Other       Class = "other"       // anything else: mostly an answer that makes no sense
)

// StatusCanceled is the status (nginx's) that stands in metrics and logs for a
// request whose caller left; no one is there to read it.
const StatusCanceled = 499

// HTTPStatus is the status with which a server reports that a call of its own
// failed in this way: 503 invites a retry, 504 says that time ran out, 502
// that the peer's answer was of no use.
func (c Class) HTTPStatus() int {
	switch c {
	case OK:
		return http.StatusOK
	case DNS, Refused, Unavailable:
		return http.StatusServiceUnavailable
	case Timeout:
		return http.StatusGatewayTimeout
	case Canceled:
		return StatusCanceled
	default:
		return http.StatusBadGateway
	}
}

// Error is a failed call: its class, and what went wrong.
type Error struct {
	Class Class
	Err   error
}

func (e *Error) Error() string { return e.Err.Error() }

// Unwrap returns what went wrong.
func (e *Error) Unwrap() error { return e.Err }

// ClassOf classifies an error by the Error in its chain or, where there is
// none, by what the standard library's network errors say. A nil error is OK.
func ClassOf(err error) Class {
	if err == nil {
		return OK // before there is anything to allocate
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
		return DNS // and no Timeout if the deadline passed meanwhile: this tells more
	case unreached(err):
		return Unavailable // nor here: nobody is there who could be slow
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		return Timeout
	case errors.Is(err, syscall.ECONNREFUSED):
		return Refused
	case errors.As(err, &network) && network.Timeout():
		return Timeout
	case brokenOff(err):
		return Unavailable
	default:
		return Other
	}
}

// ClassOfStatus classifies the status of an HTTP answer.
func ClassOfStatus(status int) Class {
	switch {
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
// (status.Convert puts the texts of wrapping errors into the message.)
func StatusOf(err error) *status.Status {
	var s interface{ GRPCStatus() *status.Status }
	if errors.As(err, &s) {
		return s.GRPCStatus()
	}
	return nil
}

// ClassOfCode classifies the status code of a gRPC response.
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
	default:
		return Other
	}
}

// unreached reports whether an address did not answer at all when a connection
// to it was to be opened.
func unreached(err error) bool {
	op, ok := errors.AsType[*net.OpError](err)
	return ok && op.Op == "dial" && op.Timeout()
}

// brokenOff reports whether the peer ended a connection in the middle.
func brokenOff(err error) bool {
	for _, e := range []error{io.EOF, io.ErrUnexpectedEOF, syscall.ECONNRESET, syscall.EPIPE, syscall.ECONNABORTED, syscall.EHOSTUNREACH, syscall.ENETUNREACH} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// Record is what a client noted on the way of one call.
type Record struct {
	// Addresses that the peer's name stood for, as host:port.
	Addresses []string
	// Peer is the address that answered last; empty if none was reached.
	Peer string
	// Attempts is 1 for a call that went through at once.
	Attempts int
}

type recordKey struct{}

// WithRecord returns a context whose call is noted in the Record. One Record
// serves one call; it may be read when the call has returned.
func WithRecord(ctx context.Context) (context.Context, *Record) {
	r := &Record{}
	return context.WithValue(ctx, recordKey{}, r), r
}

// RecordOf is the Record of ctx, or one that no one will read.
func RecordOf(ctx context.Context) *Record {
	if r, ok := ctx.Value(recordKey{}).(*Record); ok {
		return r
	}
	return &Record{}
}

// Counter is calls_total{peer,transport,outcome}: one count a call, however
// many attempts it took; outcome is a Class.
type Counter struct{ vec *prometheus.CounterVec }

// NewCounter registers the metric, or finds it where another client has.
func NewCounter(reg prometheus.Registerer) Counter {
	return Counter{Register(reg, prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "calls_total",
		Help: "Calls to other services, by peer, transport and outcome.",
	}, []string{"peer", "transport", "outcome"}))}
}

// Register registers a client's collector, or finds the same one of another
// client. It panics, as MustRegister does, if a different one has its name.
func Register[C prometheus.Collector](reg prometheus.Registerer, c C) C {
	err := reg.Register(c)
	if there, ok := errors.AsType[prometheus.AlreadyRegisteredError](err); ok {
		return there.ExistingCollector.(C)
	}
	if err != nil {
		panic(err)
	}
	return c
}

// Add counts one call.
func (c Counter) Add(peer, transport string, outcome Class) {
	c.vec.WithLabelValues(peer, transport, string(outcome)).Inc()
}
