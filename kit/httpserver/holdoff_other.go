//go:build !linux

package httpserver

import "net"

// holdOffNew does nothing: only Linux can drop new connections and still accept
// those whose handshake has started.
func holdOffNew(net.Listener) {}
