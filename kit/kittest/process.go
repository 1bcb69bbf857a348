package kittest

import (
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Build builds the program in dir into the file out, with the race detector if the
// test was built with it.
func Build(dir, out string) error {
	if raceEnabled {
		return build(dir, out, "-race")
	}
	return build(dir, out)
}

// BuildRelease builds the program in dir into the file out, as scripts/run does. It
// never uses the race detector, which multiplies memory and time.
func BuildRelease(dir, out string) error {
	return build(dir, out, "-trimpath", "-tags", "grpcnotrace,nethttpomithttp2")
}

func build(dir, out string, flags ...string) error {
	build := exec.Command("go", append(append([]string{"build", "-o", out}, flags...), ".")...)
	build.Dir = dir
	if text, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w\n%s", dir, err, text)
	}
	return nil
}

// Process is a running program. Log holds its standard output and error.
type Process struct {
	Log  *Buffer
	cmd  *exec.Cmd
	done chan struct{}
}

// Start starts a program whose environment is PATH and environ. It is killed when
// the test ends, and its log is shown if the test failed.
func Start(t testing.TB, binary string, environ ...string) *Process {
	t.Helper()
	p := &Process{Log: &Buffer{}, done: make(chan struct{})}
	p.cmd = exec.Command(binary)
	p.cmd.Env = append([]string{"PATH=" + os.Getenv("PATH")}, environ...)
	p.cmd.Stdout, p.cmd.Stderr = p.Log, p.Log
	require.NoError(t, p.cmd.Start())
	go func() {
		_ = p.cmd.Wait() // the result is in ProcessState
		close(p.done)
	}()
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill() // the process may have ended
		<-p.done
		if log := p.Log.String(); t.Failed() && log != "" {
			t.Logf("%s:\n%s", binary, log)
		}
	})
	return p
}

// Signal sends a signal.
func (p *Process) Signal(t testing.TB, s syscall.Signal) {
	t.Helper()
	require.NoError(t, p.cmd.Process.Signal(s))
}

// Wait waits until the process has ended, and returns its exit status, or -1 if a
// signal ended it. The test fails if that takes longer than timeout.
func (p *Process) Wait(t testing.TB, timeout time.Duration) int {
	t.Helper()
	select {
	case <-p.done:
		return p.cmd.ProcessState.ExitCode()
	case <-time.After(timeout):
		require.FailNow(t, "the process has not ended", "after %s; its log:\n%s", timeout, p.Log)
		return 0
	}
}

// PID returns the process id.
func (p *Process) PID() int { return p.cmd.Process.Pid }
