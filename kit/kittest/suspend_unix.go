//go:build unix

package kittest

import (
	"errors"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// Suspend sends SIGSTOP, and returns when the process has stopped: some of its threads may
// run on for a moment. SIGCONT ends it.
func (p *Process) Suspend(t testing.TB) {
	t.Helper()
	p.Signal(t, syscall.SIGSTOP)
	var status syscall.WaitStatus
	for {
		_, err := syscall.Wait4(p.PID(), &status, syscall.WUNTRACED, nil)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		require.NoError(t, err)
		require.True(t, status.Stopped(), "the process has ended")
		return
	}
}
