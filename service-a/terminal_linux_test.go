package main

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"example.com/tandem/kit/kittest"
)

// At a terminal, log lines are text with colors; NO_COLOR turns off the colors, and
// LOG_FORMAT=json the text. Elsewhere they are JSON, or text without colors.
func TestLog_ReadableAtTerminal(t *testing.T) {
	for name, tc := range map[string]struct {
		terminal   bool
		environ    []string
		json, dyed bool
	}{
		"a terminal":          {terminal: true, dyed: true},
		"NO_COLOR":            {terminal: true, environ: []string{"NO_COLOR=1"}},
		"a dumb terminal":     {terminal: true, environ: []string{"TERM=dumb"}},
		"JSON at a terminal":  {terminal: true, environ: []string{"LOG_FORMAT=json"}, json: true},
		"a pipe":              {json: true},
		"text through a pipe": {environ: []string{"LOG_FORMAT=text"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			addr := kittest.Loopbacks(t, 1)[0]
			cmd := exec.CommandContext(t.Context(), serviceBBinary)
			cmd.Env = append([]string{
				"TERM=xterm", "DRAIN_DELAY=0s", "HTTP_ADDR=" + addr + ":" + httpPort, "GRPC_ADDR=" + addr + ":" + grpcPort, "ADMIN_ADDR=" + addr + ":" + adminPort,
			}, tc.environ...)
			log := &kittest.Buffer{}
			cmd.Stdout = log
			if tc.terminal {
				cmd.Stdout = openTerminal(t, log)
			}
			require.NoError(t, cmd.Start())
			kittest.AwaitReady(t, "http://"+addr+":"+httpPort)
			kittest.Get(t, "http://"+addr+":"+httpPort+"/api/data")
			kittest.Eventually(t, func() bool { return strings.Contains(log.String(), "/api/data") }, "the request is logged")
			require.NoError(t, cmd.Process.Signal(os.Interrupt))
			require.NoError(t, cmd.Wait())

			assert.Equal(t, tc.json, strings.Contains(log.String(), `"path":"/api/data"`), log)
			assert.Equal(t, tc.dyed, strings.Contains(log.String(), "\x1b["), log)
			if !tc.json && !tc.dyed {
				assert.Contains(t, log.String(), " http method=GET path=/api/data status=200 ")
			}
		})
	}
}

// openTerminal returns a terminal that shows on screen what a process writes to it.
func openTerminal(t *testing.T, screen *kittest.Buffer) *os.File {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	require.NoError(t, err)
	fd := int(master.Fd())
	require.NoError(t, unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)) // unlock it
	number, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	require.NoError(t, err)
	terminal, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	require.NoError(t, err)
	shown := make(chan struct{})
	go func() {
		defer close(shown)
		for text := make([]byte, 4096); ; {
			n, err := master.Read(text)
			_, _ = screen.Write(text[:n]) // never fails
			if err != nil {
				return // EIO, after the last file of the terminal was closed
			}
		}
	}()
	t.Cleanup(func() {
		assert.NoError(t, terminal.Close())
		<-shown
		assert.NoError(t, master.Close())
	})
	return terminal
}
