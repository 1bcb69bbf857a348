package grpcclient

import (
	"context"
	"errors"
	"net"
	"sync"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"example.com/tandem/kit/call"
	"example.com/tandem/kit/internal/lookup"
)

// state is what is known about a client's name and connections. gRPC reports
// everything that keeps it from a server as UNAVAILABLE, with a text; callers
// want to tell the causes apart.
type state struct {
	name *lookup.Name

	mu      sync.Mutex
	dialErr error // of the last dial
}

// dial opens a connection to one address. (That there is a dialer of our own
// also keeps gRPC from looking for a proxy.)
func (s *state) dial(ctx context.Context, addr string) (net.Conn, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	if !errors.Is(err, context.Canceled) { // by gRPC, which has no more use for the address
		s.mu.Lock()
		defer s.mu.Unlock()
		s.dialErr = err
	}
	return conn, err
}

// cause returns the error that kept a call from reaching any server, or nil.
func (s *state) cause(code codes.Code) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	addrs, lookupErr := s.name.Known()
	switch {
	// When all pods are gone, the name has no address, and its old addresses
	// refuse connections: DNS is the cause.
	case lookupErr != nil && (len(addrs) == 0 || s.dialErr != nil):
		return lookupErr
	case code == codes.Unavailable:
		return s.dialErr
	default:
		return nil
	}
}

// classify returns err, the status of a call, as a *call.Error. A call that
// reached no server gets the class of what kept it from one.
func (s *state) classify(err error, reached bool) error {
	if err == nil {
		return nil
	}
	code := status.Code(err)
	class := call.ClassOfCode(code)
	if !reached && (code == codes.Unavailable || code == codes.DeadlineExceeded) {
		if cause := s.cause(code); cause != nil {
			class = call.ClassOf(cause)
			if class == call.DNS {
				err = status.Error(code, cause.Error()) // gRPC's own text does not say so
			}
		}
	}
	return &call.Error{Class: class, Err: err}
}
