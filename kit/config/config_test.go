package config_test

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"example.com/tandem/kit/config"
	"example.com/tandem/kit/fault"
	"example.com/tandem/kit/lifecycle"
)

// service is an example of a service's configuration.
type service struct {
	config.Server
	Message string  `env:"MESSAGE" envDefault:"hello" help:"text of the greeting"`
	Ratio   float64 `env:"RATIO" envDefault:"0.5" help:"a float64, a type for which errors have no hint"`
}

func TestLoad_Defaults(t *testing.T) {
	cfg, err := config.Load[service](map[string]string{})
	require.NoError(t, err)
	assert.Equal(t, service{
		Server: config.Server{
			HTTPAddr:         ":8080",
			AdminAddr:        ":8081",
			DebugAddr:        "127.0.0.1:8082",
			LogLevel:         slog.LevelInfo,
			LogFormat:        "auto",
			Drain:            config.Drain{DrainDelay: 5 * time.Second, DrainTimeout: 15 * time.Second},
			MaxConnectionAge: 30 * time.Second,
			MaxInFlight:      512,
		},
		Message: "hello",
		Ratio:   0.5,
	}, cfg)
}

// Load reads the map that it is given, not the environment of the process.
func TestLoad_ReadsGivenEnvironment(t *testing.T) {
	t.Setenv("MESSAGE", "from the process")
	cfg, err := config.Load[service](map[string]string{
		"HTTP_ADDR":                "127.0.0.1:0",
		"LOG_LEVEL":                "debug",
		"DRAIN_DELAY":              "0s",
		"MAX_IN_FLIGHT":            "3",
		"FAULTS":                   "on",
		"PPROF":                    "TRUE",
		"FAULT":                    `{"latency":"50ms"}`,
		"MEMORY_LIMIT":             "134217728",
		"HEALTH_DETAILS":           "on",
		"PRE_STOP_DELAY":           "5s",
		"TERMINATION_GRACE_PERIOD": "36s",
	})
	require.NoError(t, err)
	assert.Equal(t, "127.0.0.1:0", cfg.HTTPAddr)
	assert.Equal(t, slog.LevelDebug, cfg.LogLevel)
	assert.Zero(t, cfg.DrainDelay)
	assert.Equal(t, 3, cfg.MaxInFlight)
	assert.True(t, bool(cfg.Faults))
	assert.True(t, bool(cfg.Pprof))
	assert.Equal(t, fault.Fault{Latency: 50 * time.Millisecond}, cfg.Fault)
	assert.EqualValues(t, 128<<20, cfg.MemoryLimit)
	assert.True(t, bool(cfg.HealthDetails))
	assert.Equal(t, 5*time.Second, cfg.PreStopDelay)
	assert.Equal(t, 36*time.Second, cfg.TerminationGracePeriod)
	assert.Equal(t, "hello", cfg.Message)

	cfg, err = config.Load[service](nil)
	require.NoError(t, err)
	assert.Equal(t, "hello", cfg.Message, "nil is an empty environment, not the environment of the process")
}

func TestLoad_EmptyValueIsDefault(t *testing.T) {
	cfg, err := config.Load[service](map[string]string{"HTTP_ADDR": "", "MAX_IN_FLIGHT": "", "LOG_LEVEL": ""})
	require.NoError(t, err)
	assert.Equal(t, ":8080", cfg.HTTPAddr)
	assert.Equal(t, 512, cfg.MaxInFlight)
	assert.Equal(t, slog.LevelInfo, cfg.LogLevel)
}

// The error names the variable, its value and what would be valid. The process
// exits with status 2.
func TestLoad_ErrorSaysWhatIsValid(t *testing.T) {
	const addr = "want host:port or :port, such as :8080"
	const faultJSON = `want JSON such as {"latency":"250ms","cpu":"5ms","errorRate":0.3,"notReady":true}`
	const loopback = "want a loopback address and a port, such as 127.0.0.1:8082"
	for _, c := range []struct{ key, value, want string }{
		{key: "HTTP_ADDR", value: "8080", want: `HTTP_ADDR="8080": ` + addr},
		{key: "HTTP_ADDR", value: "localhost:http", want: `HTTP_ADDR="localhost:http": ` + addr},
		{key: "ADMIN_ADDR", value: ":99999", want: `ADMIN_ADDR=":99999": ` + addr},
		{key: "ADMIN_ADDR", value: ":1\n2", want: `ADMIN_ADDR=":1\n2": ` + addr},
		{key: "DEBUG_ADDR", value: ":8082", want: `DEBUG_ADDR=":8082": ` + loopback},
		{key: "DEBUG_ADDR", value: "0.0.0.0:8082", want: `DEBUG_ADDR="0.0.0.0:8082": ` + loopback},
		{key: "DEBUG_ADDR", value: "10.0.0.7:8082", want: `DEBUG_ADDR="10.0.0.7:8082": ` + loopback},
		{key: "DEBUG_ADDR", value: "service-b:8082", want: `DEBUG_ADDR="service-b:8082": ` + loopback},
		{key: "DEBUG_ADDR", value: "127.0.0.1", want: `DEBUG_ADDR="127.0.0.1": ` + loopback},
		{key: "FAULT", value: `{"latency":"50ms"}`, want: `FAULTS="off": want on, because FAULT is set`},
		{key: "FAULT", value: "slow", want: `FAULT="slow": ` + faultJSON + `: invalid character 's' looking for beginning of value`},
		{key: "MEMORY_LIMIT", value: "128Mi", want: `MEMORY_LIMIT="128Mi": want a whole number`},
		{key: "PRE_STOP_DELAY", value: "-1s", want: `PRE_STOP_DELAY="-1s": want 0 or more`},
		{key: "TERMINATION_GRACE_PERIOD", value: "36", want: `TERMINATION_GRACE_PERIOD="36": want a duration such as 250ms, 5s or 1m`},
		{key: "TERMINATION_GRACE_PERIOD", value: "-1s", want: `TERMINATION_GRACE_PERIOD="-1s": want 0 or more`},
		{key: "LOG_LEVEL", value: "loud", want: `LOG_LEVEL="loud": want debug, info, warn or error`},
		{key: "LOG_FORMAT", value: "xml", want: `LOG_FORMAT="xml": want auto, json or text`},
		{key: "DRAIN_DELAY", value: "5", want: `DRAIN_DELAY="5": want a duration such as 250ms, 5s or 1m`},
		{key: "DRAIN_DELAY", value: "-1s", want: `DRAIN_DELAY="-1s": want 0 or more`},
		{key: "DRAIN_TIMEOUT", value: "soon", want: `DRAIN_TIMEOUT="soon": want a duration such as 250ms, 5s or 1m`},
		{key: "DRAIN_TIMEOUT", value: "0s", want: `DRAIN_TIMEOUT="0s": want more than 0`},
		{key: "MAX_CONNECTION_AGE", value: "-1ms", want: `MAX_CONNECTION_AGE="-1ms": want 0 or more`},
		{key: "MAX_IN_FLIGHT", value: "many", want: `MAX_IN_FLIGHT="many": want a whole number`},
		{key: "MAX_IN_FLIGHT", value: "0", want: `MAX_IN_FLIGHT="0": want 1 or more`},
		{key: "FAULTS", value: "maybe", want: `FAULTS="maybe": want on or off`},
		{key: "PPROF", value: "1", want: `PPROF="1": want on or off`},
		{key: "RATIO", value: "half", want: `RATIO="half": strconv.ParseFloat: parsing "half": invalid syntax`},
	} {
		t.Run(c.key+"="+c.value, func(t *testing.T) {
			_, err := config.Load[service](map[string]string{c.key: c.value})
			require.EqualError(t, err, c.want)
			assert.Equal(t, 2, lifecycle.ExitCode(err))
			var bad *config.Error
			assert.ErrorAs(t, err, &bad)
		})
	}
}

// All invalid values are reported at once, one a line.
func TestLoad_ErrorHasLinePerValue(t *testing.T) {
	_, err := config.Load[service](map[string]string{
		"DRAIN_DELAY": "long", "FAULTS": "maybe", // cannot be parsed
		"HTTP_ADDR": "nowhere", "MAX_IN_FLIGHT": "-1", // can be parsed, but are out of range
	})
	require.Error(t, err)
	assert.ElementsMatch(t, []string{
		`DRAIN_DELAY="long": want a duration such as 250ms, 5s or 1m`,
		`FAULTS="maybe": want on or off`,
		`HTTP_ADDR="nowhere": want host:port or :port, such as :8080`,
		`MAX_IN_FLIGHT="-1": want 1 or more`,
	}, strings.Split(err.Error(), "\n"))
	assert.Equal(t, 2, lifecycle.ExitCode(err))
}

// A field of an unsupported type is a bug in the program, so the exit status is 1
// and not that of a configuration error.
func TestLoad_URLErrorSaysWhatIsValid(t *testing.T) {
	_, err := config.Load[caller](map[string]string{"SERVICE_B_HTTP_URL": "http://b:port"})
	require.EqualError(t, err, `SERVICE_B_HTTP_URL="http://b:port": want a URL such as http://HOST:PORT`)
}

// An error does not show the user name and password of a URL, even if it does not parse.
func TestInvalidURL_HidesPassword(t *testing.T) {
	for value, want := range map[string]string{
		"http://user:secret@b:port":      "http://xxxxx@b:port",
		"http://user:se@cret/@b:port/?q": "http://xxxxx@b:port/?q",
		"user:secret@b:80":               "xxxxx@b:80",
		"http://user:sec%zzret@b":        "http://xxxxx@b",
		"http://b:port":                  "http://b:port",
	} {
		_, err := config.Load[caller](map[string]string{"SERVICE_B_HTTP_URL": value})
		if err == nil { // it parses, and the service's own check reports it
			err = config.InvalidURL("SERVICE_B_HTTP_URL", value, "want a URL such as http://HOST:PORT")
		}
		require.EqualError(t, err, fmt.Sprintf("SERVICE_B_HTTP_URL=%q: want a URL such as http://HOST:PORT", want))
	}
}

func TestLoad_UnsupportedStructIsNoConfigError(t *testing.T) {
	_, err := config.Load[struct {
		Odd fmt.Stringer `env:"ODD" envDefault:"x"`
	}](nil)
	require.ErrorContains(t, err, "Stringer")
	assert.Equal(t, 1, lifecycle.ExitCode(err))
}

func TestLoad_NamesInvalidDefault(t *testing.T) {
	_, err := config.Load[struct {
		Wait time.Duration `env:"WAIT" envDefault:"tomorrow"`
	}](map[string]string{"OTHER": "x"})
	require.ErrorContains(t, err, `WAIT="tomorrow": want a duration`)
}

func TestHelp_ListsVariablesWithDefaults(t *testing.T) {
	var out bytes.Buffer
	config.Help[service](&out)
	var rows [][]string
	for line := range strings.Lines(out.String()) {
		if key, _, _ := strings.Cut(strings.TrimSpace(line), " "); key == "FAULT" {
			continue // FAULT has no default
		}
		require.Greater(t, len(strings.Fields(line)), 2, "want a key, a default and a description: %q", line)
		rows = append(rows, strings.Fields(line)[:2])
	}
	assert.Equal(t, [][]string{
		{"HTTP_ADDR", ":8080"},
		{"ADMIN_ADDR", ":8081"},
		{"DEBUG_ADDR", "127.0.0.1:8082"},
		{"LOG_LEVEL", "info"},
		{"LOG_FORMAT", "auto"},
		{"DRAIN_DELAY", "5s"},
		{"DRAIN_TIMEOUT", "15s"},
		{"PRE_STOP_DELAY", "0s"},
		{"TERMINATION_GRACE_PERIOD", "0s"},
		{"MAX_CONNECTION_AGE", "30s"},
		{"MAX_IN_FLIGHT", "512"},
		{"MEMORY_LIMIT", "0"},
		{"HEALTH_DETAILS", "off"},
		{"FAULTS", "off"},
		{"PPROF", "off"},
		{"MESSAGE", "hello"},
		{"RATIO", "0.5"},
	}, rows)
	assert.Contains(t, out.String(), "text of the greeting\n")
}

// Values may contain equals signs.
func TestEnviron_SplitsAtFirstEqualsSign(t *testing.T) {
	assert.Equal(t, map[string]string{"A": "1", "B": "x=y", "C": ""}, config.Environ([]string{"A=1", "B=x=y", "C="}))
}

func TestChecks_ReturnNilForValidValues(t *testing.T) {
	assert.NoError(t, errors.Join(
		config.Addr("A", ":0"),
		config.Addr("A", "[::1]:65535"),
		config.Positive("A", 1),
		config.NotNegative("A", 0),
	))
}

// DEBUG_ADDR may be any loopback address.
func TestDebugAddr_AcceptsAnyLoopback(t *testing.T) {
	for _, addr := range []string{"127.0.0.1:8082", "127.1.2.3:0", "[::1]:8082", "localhost:8082"} {
		_, err := config.Load[service](map[string]string{"DEBUG_ADDR": addr})
		assert.NoError(t, err)
	}
}

// The debug server is needed if FAULTS or PPROF is on.
func TestDebug_IsOnForFaultsOrPprof(t *testing.T) {
	assert.False(t, config.Server{}.Debug())
	assert.True(t, config.Server{Faults: true}.Debug())
	assert.True(t, config.Server{Pprof: true}.Debug())
}
