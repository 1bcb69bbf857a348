// Package logtext turns the JSON lines of slog into lines for people. Services use it at
// a terminal, and scripts/run for what its services write to a pipe. Everything else
// reads the JSON.
package logtext

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Format says how lines look.
type Format struct {
	// Color is whether to use the colors of terminals.
	Color bool
	// Hide reports whether an attribute is left out. The span id always is.
	Hide func(key, value string) bool
}

// Colors for Paint, as parameters of the escape sequence.
const (
	Dim     = "2"
	Red     = "31"
	Yellow  = "33"
	Magenta = "35"
	Cyan    = "36"
)

// Paint returns text in a color if the format has colors.
func (f Format) Paint(color, text string) string {
	if !f.Color {
		return text
	}
	return "\x1b[" + color + "m" + text + "\x1b[0m"
}

// IsTerminal reports whether f is a terminal.
func IsTerminal(f *os.File) bool {
	info, err := f.Stat()
	if err != nil || info.Mode()&os.ModeCharDevice == 0 {
		return false
	}
	null, err := os.Stat(os.DevNull) // a character device, too
	return err != nil || !os.SameFile(info, null)
}

// Colored reports whether the environment allows colors at a terminal.
func Colored(getenv func(string) string) bool {
	return getenv("NO_COLOR") == "" && getenv("TERM") != "dumb"
}

// Line converts a JSON line of slog; it reports false for any other line.
func (f Format) Line(line []byte) (text string, ok bool) {
	attrs := members(line)
	if len(attrs) < 3 || attrs[0].key != "time" || attrs[1].key != "level" || attrs[2].key != "msg" {
		return "", false
	}
	at, err := time.Parse(time.RFC3339Nano, attrs[0].value)
	if err != nil {
		return "", false
	}
	words := []string{f.Paint(Dim, at.Format("15:04:05.000"))}
	switch level := attrs[1].value; level {
	case "INFO":
	case "ERROR":
		words = append(words, f.Paint(Red, level))
	default:
		words = append(words, f.Paint(Yellow, printable(level)))
	}
	words = append(words, printable(attrs[2].value))
	for _, a := range attrs[3:] {
		switch {
		case a.key == "span_id", f.Hide != nil && f.Hide(a.key, a.value):
		case a.key == "trace_id" && len(a.value) > 8:
			words = append(words, f.Paint(Dim, "trace=")+printable(a.value[:8]))
		case a.value == "" || strings.ContainsAny(a.value, " =\"") && !a.nested:
			words = append(words, f.Paint(Dim, printable(a.key)+"=")+strconv.Quote(a.value))
		default:
			words = append(words, f.Paint(Dim, printable(a.key)+"=")+printable(a.value))
		}
	}
	return strings.Join(words, " "), true
}

// member is one member of a JSON object; value is a string without quotes, or JSON.
type member struct {
	key, value string
	nested     bool
}

// members returns the members of a JSON object in their order, or nil for other JSON.
func members(line []byte) []member {
	if !json.Valid(line) || line[0] != '{' {
		return nil
	}
	var out []member
	dec := json.NewDecoder(bytes.NewReader(line))
	_, _ = dec.Token() // {; the JSON is valid, so nothing here fails
	for dec.More() {
		key, _ := dec.Token()
		var raw json.RawMessage
		_ = dec.Decode(&raw)
		m := member{key: fmt.Sprint(key), value: string(raw)}
		m.nested = json.Unmarshal(raw, &m.value) != nil
		out = append(out, m)
	}
	return out
}

// printable quotes texts with control characters, which could manipulate the
// terminal: clients determine parts of a log line.
func printable(s string) string {
	if !utf8.ValidString(s) || strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return strconv.Quote(s)
	}
	return s
}
