// Package config reads the settings of a service from environment variables into a
// struct whose tags document them:
//
//	CallTimeout time.Duration `env:"CALL_TIMEOUT" envDefault:"2s" help:"deadline of one call"`
//
// An invalid value stops the start. The error names every such variable, its value,
// and what is valid.
package config

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"net/url"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/caarlos0/env/v11"

	"example.com/tandem/kit/fault"
)

// Server holds the settings of every service. Embed it.
type Server struct {
	HTTPAddr  string     `env:"HTTP_ADDR" envDefault:":8080" help:"where the API listens"`
	AdminAddr string     `env:"ADMIN_ADDR" envDefault:":8081" help:"where metrics are served; in no Service"`
	DebugAddr string     `env:"DEBUG_ADDR" envDefault:"127.0.0.1:8082" help:"where the fault switch and pprof listen if one of them is on; loopback only"`
	LogLevel  slog.Level `env:"LOG_LEVEL" envDefault:"info" help:"debug, info, warn or error"`
	LogFormat LogFormat  `env:"LOG_FORMAT" envDefault:"auto" help:"json, text, or auto: text at a terminal, with colors unless NO_COLOR is set, and JSON elsewhere"`
	Drain
	MaxConnectionAge time.Duration `env:"MAX_CONNECTION_AGE" envDefault:"30s" help:"close connections at this age, after their requests, so that new pods get a share; 0 is never"`
	MaxInFlight      int           `env:"MAX_IN_FLIGHT" envDefault:"512" help:"requests served at once; more wait briefly, then are refused"`
	MemoryLimit      uint64        `env:"MEMORY_LIMIT" envDefault:"0" help:"the container's memory limit in bytes; 90 % of it is Go's soft limit, unless GOMEMLIMIT is set; 0 is none"`
	HealthDetails    OnOff         `env:"HEALTH_DETAILS" envDefault:"off" help:"on shows pod, node and addresses in /health"`
	Faults           OnOff         `env:"FAULTS" envDefault:"off" help:"on serves the fault switch, /faults, at DEBUG_ADDR, and where the service says so to callers: for demos and tests only"`
	Fault            fault.Fault   `env:"FAULT" help:"the fault to start with, as JSON; needs FAULTS=on"`
	Pprof            OnOff         `env:"PPROF" envDefault:"off" help:"on serves /debug/pprof at DEBUG_ADDR"`
}

// Drain holds the settings of the shutdown. Package lifecycle shows the timeline, and
// checks that it fits into TerminationGracePeriod.
type Drain struct {
	DrainDelay             time.Duration `env:"DRAIN_DELAY" envDefault:"5s" help:"after SIGTERM, serve for this long while callers move to other pods"`
	DrainTimeout           time.Duration `env:"DRAIN_TIMEOUT" envDefault:"15s" help:"then wait at most this long for requests in flight"`
	PreStopDelay           time.Duration `env:"PRE_STOP_DELAY" envDefault:"0s" help:"how long the pod's preStop hook sleeps before SIGTERM"`
	TerminationGracePeriod time.Duration `env:"TERMINATION_GRACE_PERIOD" envDefault:"0s" help:"the pod's terminationGracePeriodSeconds; checked at the start; 0 is unknown"`
}

// Validate returns an error for every value that parses but cannot work.
func (s Server) Validate() error {
	errs := []error{
		Addr("HTTP_ADDR", s.HTTPAddr),
		Addr("ADMIN_ADDR", s.AdminAddr),
		loopback("DEBUG_ADDR", s.DebugAddr),
		NotNegative("DRAIN_DELAY", s.DrainDelay),
		Positive("DRAIN_TIMEOUT", s.DrainTimeout),
		NotNegative("PRE_STOP_DELAY", s.PreStopDelay),
		NotNegative("TERMINATION_GRACE_PERIOD", s.TerminationGracePeriod),
		NotNegative("MAX_CONNECTION_AGE", s.MaxConnectionAge),
		atLeastOne("MAX_IN_FLIGHT", s.MaxInFlight),
	}
	if s.Fault != (fault.Fault{}) && !s.Faults {
		errs = append(errs, Invalid("FAULTS", "off", "want on, because FAULT is set"))
	}
	return errors.Join(errs...)
}

// Debug reports whether a server at DebugAddr is needed.
func (s Server) Debug() bool { return bool(s.Faults || s.Pprof) }

// OnOff is a boolean that reads "on" or "off".
type OnOff bool

// UnmarshalText accepts on and off, true and false.
func (s *OnOff) UnmarshalText(text []byte) error {
	switch strings.ToLower(string(text)) {
	case "on", "true":
		*s = true
	case "off", "false":
		*s = false
	default:
		return errors.New("want on or off")
	}
	return nil
}

// LogFormat is auto, json or text. Package lifecycle reads it.
type LogFormat string

// UnmarshalText accepts the three formats.
func (f *LogFormat) UnmarshalText(text []byte) error {
	switch *f = LogFormat(text); *f {
	case "auto", "json", "text":
		return nil
	default:
		return errors.New("want auto, json or text")
	}
}

// Addr checks an address to listen on: host:port or :port.
func Addr(key, value string) error {
	_, port, err := net.SplitHostPort(value)
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	if err != nil {
		return Invalid(key, value, "want host:port or :port, such as :8080")
	}
	return nil
}

// loopback checks an address to listen on that only this host or pod can connect to.
func loopback(key, value string) error {
	host, _, _ := net.SplitHostPort(value)
	if ip, err := netip.ParseAddr(host); Addr(key, value) != nil || host != "localhost" && (err != nil || !ip.IsLoopback()) {
		return Invalid(key, value, "want a loopback address and a port, such as 127.0.0.1:8082")
	}
	return nil
}

// Positive checks a duration that must be more than 0.
func Positive(key string, d time.Duration) error {
	if d <= 0 {
		return Invalid(key, d.String(), "want more than 0")
	}
	return nil
}

// NotNegative checks a duration that may be 0.
func NotNegative(key string, d time.Duration) error {
	if d < 0 {
		return Invalid(key, d.String(), "want 0 or more")
	}
	return nil
}

func atLeastOne(key string, n int) error {
	if n < 1 {
		return Invalid(key, strconv.Itoa(n), "want 1 or more")
	}
	return nil
}

// Error is an invalid setting or argument. The process exits with status 2.
type Error struct{ Msg string }

func (e *Error) Error() string { return e.Msg }

// ExitCode returns the exit status for this error.
func (e *Error) ExitCode() int { return 2 }

// Invalid returns the error for a variable's value; want says what is valid.
func Invalid(key, value, want string) error {
	return &Error{fmt.Sprintf("%s=%q: %s", key, value, want)}
}

// userinfo is what may be a user name and a password, in a text that may not be a valid URL.
// A password may contain @.
var userinfo = regexp.MustCompile(`(?s)^([\w+.-]+://)?.*@`)

// InvalidURL is Invalid for a URL: the error does not have its user name and password.
func InvalidURL(key, value, want string) error {
	return Invalid(key, userinfo.ReplaceAllString(value, "${1}xxxxx@"), want)
}

// Load reads a T from the environment and its defaults, and calls its Validate method
// if it has one. The error joins one Error for each invalid value.
func Load[T any](environ map[string]string) (T, error) {
	var cfg T
	if environ == nil {
		environ = map[string]string{} // for nil, the library reads the process's environment
	}
	err := env.ParseWithOptions(&cfg, env.Options{Environment: environ})
	if err != nil {
		rest, bad := explain(err, fields(reflect.TypeOf(cfg)), environ)
		if len(rest) < len(environ) {
			// Replace values that do not parse by their defaults, so that the others are checked, too.
			_, err = Load[T](rest)
			bad = errors.Join(bad, err)
		}
		return cfg, bad
	}
	if v, ok := any(cfg).(interface{ Validate() error }); ok {
		err = v.Validate()
	}
	return cfg, err
}

// explain names the variable and its value, where the library names the field.
// The rest is environ without those variables.
func explain(err error, fields []field, environ map[string]string) (rest map[string]string, bad error) {
	rest = maps.Clone(environ)
	var all env.AggregateError
	if !errors.As(err, &all) {
		return rest, err
	}
	var out []error
	for _, e := range all.Errors {
		var parse env.ParseError
		if !errors.As(e, &parse) {
			out = append(out, e)
			continue
		}
		for _, f := range fields {
			if f.name == parse.Name {
				invalid := Invalid
				if f.typ == reflect.TypeFor[url.URL]() {
					invalid = InvalidURL
				}
				out = append(out, invalid(f.key, cmp.Or(environ[f.key], f.defaultValue), wanted(f.typ, parse.Err)))
				delete(rest, f.key)
			}
		}
	}
	return rest, errors.Join(out...)
}

func wanted(typ reflect.Type, err error) string {
	switch typ {
	case reflect.TypeFor[time.Duration]():
		return "want a duration such as 250ms, 5s or 1m"
	case reflect.TypeFor[slog.Level]():
		return "want debug, info, warn or error"
	case reflect.TypeFor[int](), reflect.TypeFor[uint64]():
		return "want a whole number"
	case reflect.TypeFor[url.URL]():
		return "want a URL such as http://HOST:PORT"
	}
	return err.Error()
}

// Help writes a table of the settings of a T, one a line.
func Help[T any](w io.Writer) {
	tab := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, f := range fields(reflect.TypeFor[T]()) {
		fmt.Fprintf(tab, "  %s\t%s\t%s\n", f.key, f.defaultValue, f.help)
	}
	_ = tab.Flush() // if writing to the terminal fails, the error cannot be shown either
}

// Environ converts os.Environ() into a map.
func Environ(pairs []string) map[string]string { return env.ToMap(pairs) }

type field struct {
	name, key, defaultValue, help string
	typ                           reflect.Type
}

func fields(t reflect.Type) []field {
	var out []field
	for f := range t.Fields() {
		if f.Anonymous {
			out = append(out, fields(f.Type)...)
			continue
		}
		out = append(out, field{f.Name, f.Tag.Get("env"), f.Tag.Get("envDefault"), f.Tag.Get("help"), f.Type})
	}
	return out
}
