package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"
)

// output is the terminal, which all services and this program write to.
type output struct {
	mu    sync.Mutex
	w     io.Writer
	color bool
	raw   bool // log lines are printed as the services write them
}

// colors reports whether f is a terminal that shows colors.
func colors(f *os.File) bool {
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0 && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
}

func (o *output) print(text string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	_, _ = fmt.Fprintln(o.w, text) // without a terminal, the error cannot be shown either
}

func (o *output) paint(color, text string) string {
	if !o.color {
		return text
	}
	return "\x1b[" + color + "m" + text + "\x1b[0m"
}

const (
	red, yellow, magenta, cyan = "31", "33", "35", "36"
)

// log returns the writer for the log of a service.
func (o *output) log(name string) *serviceLog {
	return &serviceLog{out: o, name: name}
}

// serviceLog prints whole lines from pieces of any size.
type serviceLog struct {
	out  *output
	name string
	rest []byte // the start of a line that is incomplete
}

func (l *serviceLog) Write(p []byte) (int, error) {
	l.rest = append(l.rest, p...)
	for {
		line, rest, found := bytes.Cut(l.rest, []byte("\n"))
		if !found {
			return len(p), nil
		}
		l.out.print(l.format(line))
		l.rest = rest
	}
}

// flush prints a last line without a line break.
func (l *serviceLog) flush() {
	if len(l.rest) > 0 {
		l.out.print(l.format(l.rest))
		l.rest = nil
	}
}

func (l *serviceLog) format(line []byte) string {
	if l.out.raw {
		return string(line)
	}
	color := cyan
	if l.name == "service-b" {
		color = magenta
	}
	text, ok := l.render(line)
	if !ok {
		text = string(line)
	}
	return l.out.paint(color, l.name) + "  " + text
}

// render converts a JSON line of slog into a line for reading; it reports false for
// any other line. Attributes that repeat the prefix, and span ids, are left out.
func (l *serviceLog) render(line []byte) (string, bool) {
	attrs := members(line)
	if len(attrs) < 3 || attrs[0].key != "time" || attrs[1].key != "level" || attrs[2].key != "msg" {
		return "", false
	}
	at, err := time.Parse(time.RFC3339Nano, attrs[0].value)
	if err != nil {
		return "", false
	}
	words := []string{at.Format("15:04:05.000")}
	switch level := attrs[1].value; level {
	case "INFO":
	case "ERROR":
		words = append(words, l.out.paint(red, level))
	default:
		words = append(words, l.out.paint(yellow, printable(level)))
	}
	words = append(words, printable(attrs[2].value))
	for _, a := range attrs[3:] {
		switch {
		case a.key == "service" && a.value == l.name, a.key == "pod" && a.value == l.name+"-1", a.key == "span_id":
		case a.key == "trace_id" && len(a.value) > 8:
			words = append(words, "trace="+printable(a.value[:8]))
		case a.value == "" || strings.ContainsAny(a.value, " =\"") && !a.nested:
			words = append(words, printable(a.key)+"="+strconv.Quote(a.value))
		default:
			words = append(words, printable(a.key)+"="+printable(a.value))
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
