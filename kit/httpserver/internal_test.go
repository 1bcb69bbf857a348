package httpserver

import (
	"io"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"example.com/tandem/kit/kittest"
)

func TestServe_ReturnsListenerError(t *testing.T) {
	s := newServer("HTTP_ADDR", "127.0.0.1:0", kittest.Telemetry(t, io.Discard))
	require.NoError(t, s.Listen())
	require.NoError(t, s.listener.Close())
	err := s.Serve()
	require.ErrorIs(t, err, net.ErrClosed)
	require.ErrorContains(t, err, "HTTP_ADDR: serve: ")
}

// The ages at which connections expire are spread over 90 to 110 % of maxAge. The test
// calls setExpiry: measured at a client, the ages would depend on the machine's load.
func TestSetExpiry_HasJitter(t *testing.T) {
	s := &Server{maxAge: time.Hour}
	var least, most time.Duration
	for range 1000 {
		before := time.Now()
		expiry := s.setExpiry(t.Context(), nil).Value(expiryKey{}).(time.Time)
		age := expiry.Sub(before)
		assert.GreaterOrEqual(t, age, 54*time.Minute)
		assert.LessOrEqual(t, time.Until(expiry), 66*time.Minute)
		if least == 0 || age < least {
			least = age
		}
		most = max(most, age)
	}
	assert.Less(t, least, 56*time.Minute, "the ages are spread over the whole range")
	assert.Greater(t, most, 64*time.Minute)
}
