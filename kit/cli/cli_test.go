package cli_test

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"example.com/tandem/kit/cli"
	"example.com/tandem/kit/config"
	"example.com/tandem/kit/instance"
	"example.com/tandem/kit/lifecycle"
)

// settings is the configuration of a service.
type settings struct {
	config.Server
	Message string `env:"MESSAGE" envDefault:"hello" help:"what to say"`
}

// run runs the command line of service-x in an empty environment.
func run(t *testing.T, args ...string) (done bool, out string, err error) {
	t.Helper()
	return runIn(t, nil, args...)
}

func runIn(t *testing.T, environ map[string]string, args ...string) (done bool, out string, err error) {
	t.Helper()
	var buf bytes.Buffer
	done, err = cli.Run[settings](t.Context(), "service-x", "service-x does x.", args, environ, &buf)
	return done, buf.String(), err
}

func TestRun_WithoutArgumentsServes(t *testing.T) {
	done, out, err := run(t)
	require.NoError(t, err)
	assert.False(t, done)
	assert.Empty(t, out)
}

// --help lists the subcommands and the environment variables with their meaning.
func TestRun_Help(t *testing.T) {
	for _, arg := range []string{"--help", "-help", "-h", "help"} {
		done, out, err := run(t, arg)
		require.NoError(t, err, arg)
		assert.True(t, done, arg)
		for _, want := range []string{
			"service-x does x.\n",
			"service-x probe URL ", "service-x fault [JSON|off] ", "service-x --version ", "service-x --help ",
			"\n  HTTP_ADDR ", "\n  MESSAGE ", "what to say",
			"OTEL_EXPORTER_OTLP_ENDPOINT", "POD_NAME",
		} {
			assert.Contains(t, out, want, arg)
		}
	}
}

func TestRun_Version(t *testing.T) {
	for _, arg := range []string{"--version", "-version", "version"} {
		done, out, err := run(t, arg)
		require.NoError(t, err, arg)
		assert.True(t, done, arg)
		assert.Equal(t, "service-x "+instance.Version()+"\n", out, arg)
	}
}

func TestRun_Probe(t *testing.T) {
	server := httptest.NewServer(http.NotFoundHandler())
	defer server.Close()

	done, out, err := run(t, "probe", server.URL)
	assert.True(t, done)
	assert.Contains(t, out, "received")
	require.ErrorContains(t, err, "status 404")
	assert.Equal(t, 1, lifecycle.ExitCode(err))

	done, _, err = run(t, "probe")
	assert.True(t, done)
	require.ErrorContains(t, err, "usage: probe")
	assert.Equal(t, 2, lifecycle.ExitCode(err))
}

func TestRun_UnknownArgumentIsWrongUsage(t *testing.T) {
	done, out, err := run(t, "serve\n")
	assert.True(t, done, "the service must not serve")
	assert.Empty(t, out)
	require.EqualError(t, err, `service-x: unknown argument "serve\n"; see service-x --help`)
	assert.Equal(t, 2, lifecycle.ExitCode(err))
}
