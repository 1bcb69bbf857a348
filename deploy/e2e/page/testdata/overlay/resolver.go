package main

import (
	"context"
	"net"
	"os"
)

// The tests build service-a with this file in addition, so that it resolves names at the
// DNS server of the test.
func init() {
	net.DefaultResolver = &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, os.Getenv("TEST_DNS"))
	}}
}
