package config_test

import (
	"net/url"
	"testing"

	"github.com/stretchr/testify/assert"

	"example.com/tandem/kit/config"
)

// caller is the configuration of a service that calls another.
type caller struct {
	config.Server
	ServiceBHTTPURL url.URL `env:"SERVICE_B_HTTP_URL"`
}

// A misspelled name is reported with the nearest name of a setting. The results
// are sorted by name.
func TestFindUnknown_SuggestsNearest(t *testing.T) {
	for name, nearest := range map[string]string{
		"SERVICE_B_HTTP_URI":               "SERVICE_B_HTTP_URL",
		"SERVICE_B_URL":                    "SERVICE_B_HTTP_URL",
		"SERVICEB_HTTP_URL":                "SERVICE_B_HTTP_URL",
		"service_b_http_url":               "SERVICE_B_HTTP_URL",
		"DRAINDELAY":                       "DRAIN_DELAY",
		"DRAIN_TIME_OUT":                   "DRAIN_TIMEOUT",
		"MAX_INFLIGHT":                     "MAX_IN_FLIGHT",
		"FAULTSS":                          "FAULTS",
		"TERMINATION_GRACE_PERIOD_SECONDS": "TERMINATION_GRACE_PERIOD",
		"POD_NAMSPACE":                     "POD_NAMESPACE",
	} {
		assert.Equal(t, []config.Unknown{{Name: name, Nearest: nearest}}, config.FindUnknown[caller](map[string]string{name: "x"}))
	}
	assert.Equal(t, []config.Unknown{
		{Name: "FAULTSS", Nearest: "FAULTS"},
		{Name: "MAX_INFLIGHT", Nearest: "MAX_IN_FLIGHT"},
	}, config.FindUnknown[caller](map[string]string{"MAX_INFLIGHT": "1", "FAULTSS": "on", "HTTP_ADDR": ":80"}), "sorted by name")
}

// Variables of shells, containers, Kubernetes, Go, OpenTelemetry and other tools
// are not reported as misspelled settings.
func TestFindUnknown_IgnoresOtherVariables(t *testing.T) {
	environ := map[string]string{}
	for _, name := range []string{
		// settings, and where the instance runs
		"HTTP_ADDR", "SERVICE_B_HTTP_URL", "DRAIN_DELAY", "POD_NAME", "POD_NAMESPACE", "POD_IP", "NODE_NAME", "NODE_ZONE",
		// shells, desktops, systemd, CI runners
		"PATH", "HOME", "HOSTNAME", "HOST", "USER", "LOGNAME", "SHELL", "SHLVL", "PWD", "OLDPWD", "LANG",
		"LC_ALL", "TERM", "TZ", "TMPDIR",
		"DISPLAY", "EDITOR", "PAGER", "MAIL", "XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS", "SSH_AUTH_SOCK",
		"SSH_CONNECTION", "COLORTERM",
		"INVOCATION_ID", "JOURNAL_STREAM", "MEMORY_PRESSURE_WATCH", "NOTIFY_SOCKET", "CI", "GITHUB_ACTIONS",
		"GITHUB_SHA", "RUNNER_OS", "PS1", "_",
		// proxies, certificates
		"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "SSL_CERT_FILE", "SSL_CERT_DIR",
		// Kubernetes, for the API server and for a Service called service-b
		"KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT", "KUBERNETES_SERVICE_PORT_HTTPS", "KUBERNETES_PORT",
		"KUBERNETES_PORT_443_TCP_ADDR",
		"SERVICE_B_SERVICE_HOST", "SERVICE_B_SERVICE_PORT", "SERVICE_B_SERVICE_PORT_HTTP", "SERVICE_B_PORT",
		"SERVICE_B_PORT_80_TCP_ADDR",
		// Go, OpenTelemetry, Azure workload identity
		"GOGC", "GOMEMLIMIT", "GOMAXPROCS", "GODEBUG", "GOTRACEBACK", "OTEL_SERVICE_NAME", "OTEL_EXPORTER_OTLP_ENDPOINT",
		"AZURE_CLIENT_ID", "AZURE_TENANT_ID", "AZURE_FEDERATED_TOKEN_FILE", "AZURE_AUTHORITY_HOST",
		// make, make run
		"SERVICE_A_HTTP_PORT", "SERVICE_B_ADMIN_PORT", "LOG_FORMAT", "NO_COLOR", "VERSION", "FUZZTIME",
		"KIND_PORT", "OVERLAY", "MAKEFLAGS", "MAKELEVEL", "MFLAGS",
	} {
		environ[name] = "x"
	}
	assert.Empty(t, config.FindUnknown[caller](environ))
}
