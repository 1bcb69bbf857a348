package cli_test

import (
	"bytes"
	"net/http/httptest"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"example.com/tandem/kit/cli"
	"example.com/tandem/kit/fault"
	"example.com/tandem/kit/lifecycle"
)

// serveFaults serves a fault switch. run runs the subcommand fault with DEBUG_ADDR set
// to its address.
func serveFaults(t *testing.T) (server *httptest.Server, run func(args ...string) (string, error)) {
	t.Helper()
	server = httptest.NewServer(fault.NewSwitch(true, func(bool) {}))
	t.Cleanup(server.Close)
	environ := map[string]string{"DEBUG_ADDR": server.Listener.Addr().String()}
	return server, func(args ...string) (string, error) {
		var out bytes.Buffer
		done, err := cli.Run[settings](t.Context(), "service-x", "", append([]string{"fault"}, args...), environ, &out)
		assert.True(t, done)
		return out.String(), err
	}
}

func TestFault_SetsShowsAndRemoves(t *testing.T) {
	_, run := serveFaults(t)
	const none = `{"latency":"0s","cpu":"0s","errorRate":0,"notReady":false}`
	const slow = `{"latency":"5s","cpu":"0s","errorRate":0,"notReady":false}`
	for _, c := range []struct {
		args []string
		want string
	}{
		{args: nil, want: none},
		{args: []string{`{"latency":"5s"}`}, want: slow},
		{args: nil, want: slow},
		{args: []string{"off"}, want: none},
	} {
		out, err := run(c.args...)
		require.NoError(t, err)
		assert.JSONEq(t, c.want, out, "fault %v", c.args)
	}
}

func TestFault_RefusesBadInput(t *testing.T) {
	server, run := serveFaults(t)
	_, err := run(`{"errorRate":2}`)
	require.ErrorContains(t, err, "errorRate 2: want 0 to 1")
	for _, args := range [][]string{{"--help"}, {"off", "on"}} {
		_, err := run(args...)
		require.ErrorContains(t, err, "usage: fault")
		assert.Equal(t, 2, lifecycle.ExitCode(err))
	}
	server.Close()
	_, err = run()
	require.ErrorContains(t, err, "is FAULTS=on?")
}

func TestFault_RefusesOtherHosts(t *testing.T) {
	environ := map[string]string{"DEBUG_ADDR": "example.com:80"}
	done, _, err := runIn(t, environ, "fault")
	assert.True(t, done)
	require.ErrorContains(t, err, "want a loopback address")
	assert.Equal(t, 2, lifecycle.ExitCode(err))
}
