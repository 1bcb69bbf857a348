package grpcclient

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"example.com/tandem/kit/call"
	"example.com/tandem/kit/internal/lookup"
)

// connState holds the latest results of a client's lookups and dials. gRPC
// reports every reason for which a call reached no server as UNAVAILABLE;
// connState tells a failed lookup from a failed dial.
type connState struct {
	name     *lookup.Name
	notReady atomic.Pointer[map[string]bool] // addresses that get no calls; see View

	mu      sync.Mutex
	dialErr error // of the last dial
}

// dial opens a connection to one address and records the error. Because the
// client has a dialer, gRPC uses no proxy.
func (c *connState) dial(ctx context.Context, addr string) (net.Conn, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	if !errors.Is(err, context.Canceled) { // gRPC cancels dials to addresses that it no longer needs
		c.mu.Lock()
		defer c.mu.Unlock()
		c.dialErr = err
	}
	return conn, err
}

// classify returns err, the status of a call, as a *call.Error. If the call
// reached no server, its class is that of the failed lookup or dial.
func (c *connState) classify(err error, reached bool) error {
	if err == nil {
		return nil
	}
	code := status.Code(err)
	class := call.ClassOfCode(code)
	if !reached && (code == codes.Unavailable || code == codes.DeadlineExceeded) {
		if cause := c.cause(code); cause != nil {
			class = call.ClassOf(cause)
			if class == call.DNS {
				err = status.Error(code, cause.Error()) // gRPC's text does not mention the lookup
			}
		}
	}
	return &call.Error{Class: class, Err: err}
}

// cause returns why a call reached no server: the error of the last lookup or
// dial, or nil if neither failed.
func (c *connState) cause(code codes.Code) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	addrs, lookupErr := c.name.Known()
	switch {
	// Once all pods are gone, the lookup fails and the old addresses refuse
	// connections: the cause is the lookup.
	case lookupErr != nil && (len(addrs) == 0 || c.dialErr != nil):
		return lookupErr
	case code == codes.Unavailable:
		return c.dialErr
	default:
		return nil
	}
}
