package kittest

import (
	"bytes"
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// CallWithDeadline makes a gRPC call of a method with an empty message and waits until it
// has ended. Only the server knows the deadline: a client of grpc-go resets the stream at
// its own deadline, and the server sees a canceled call if the reset arrives before its own
// timer fires.
func CallWithDeadline(t testing.TB, addr, method string, deadline time.Duration) {
	t.Helper()
	transport := &http.Transport{Protocols: new(http.Protocols)}
	transport.Protocols.SetUnencryptedHTTP2(true)
	defer transport.CloseIdleConnections()
	emptyMessage := make([]byte, 5) // not compressed, no bytes follow
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+addr+method, bytes.NewReader(emptyMessage))
	require.NoError(t, err)
	req.Header = http.Header{"Content-Type": {"application/grpc"}, "Te": {"trailers"}, "Grpc-Timeout": {fmt.Sprintf("%dm", deadline.Milliseconds())}}
	resp, err := transport.RoundTrip(req)
	if err == nil { // otherwise grpc-go reset the stream before the handler's status was sent
		require.NoError(t, resp.Body.Close())
	}
}
