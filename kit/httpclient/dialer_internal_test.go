package httpclient

import (
	"context"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"example.com/tandem/kit/call"
)

// Behind one address there may be many pods: a virtual IP sends each try to
// whichever it likes.
func TestAnOnlyAddressIsTriedTwice(t *testing.T) {
	d := newDialer()
	tries := 0
	d.Control = func(string, string, syscall.RawConn) error {
		tries++
		return syscall.ECONNREFUSED
	}
	_, err := d.dial(t.Context(), "tcp", "127.0.0.1:80")
	assert.Equal(t, call.Refused, call.ClassOf(err))
	assert.Equal(t, 2, tries)
}

func TestAnAddressThatDidNotAnswerLatelyIsGivenUpSooner(t *testing.T) {
	d := newDialer()
	var limits []time.Duration
	d.ControlContext = func(ctx context.Context, _, _ string, _ syscall.RawConn) error {
		deadline, ok := ctx.Deadline()
		require.True(t, ok)
		limits = append(limits, time.Until(deadline))
		return syscall.ETIMEDOUT
	}
	_, err := d.dial(t.Context(), "tcp", "127.0.0.1:80")
	assert.Equal(t, call.Unavailable, call.ClassOf(err), "%v", err)
	require.Len(t, limits, 2)
	assert.InDelta(t, connectTimeout, limits[0], float64(connectTimeout-briefTimeout)/2)
	assert.LessOrEqual(t, limits[1], briefTimeout)

	_, err = d.dial(t.Context(), "tcp", "127.0.0.2:80")
	require.Error(t, err)
	assert.Greater(t, limits[2], briefTimeout, "another")

	limits = nil
	d.failed["127.0.0.1:80"] = time.Now().Add(-shunned - 1)
	_, err = d.dial(t.Context(), "tcp", "127.0.0.1:80")
	require.Error(t, err)
	assert.Greater(t, limits[0], briefTimeout, "it may be well by now")
}
