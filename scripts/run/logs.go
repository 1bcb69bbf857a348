package main

import (
	"bytes"
	"fmt"
	"io"
	"sync"

	"example.com/tandem/kit/logtext"
)

// output is the terminal, which all services and this program write to.
type output struct {
	mu    sync.Mutex
	w     io.Writer
	color bool
	raw   bool // log lines are printed as the services write them
}

func (o *output) print(text string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	_, _ = fmt.Fprintln(o.w, text) // without a terminal, the error cannot be shown either
}

func (o *output) paint(color, text string) string {
	return logtext.Format{Color: o.color}.Paint(color, text)
}

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
	color := logtext.Cyan
	if l.name == "service-b" {
		color = logtext.Magenta
	}
	text, ok := logtext.Format{Color: l.out.color, Hide: l.repeatsPrefix}.Line(line)
	if !ok {
		text = string(line)
	}
	return l.out.paint(color, l.name) + "  " + text
}

// repeatsPrefix reports whether an attribute says what the prefix of the line does.
func (l *serviceLog) repeatsPrefix(key, value string) bool {
	return key == "service" && value == l.name || key == "pod" && value == l.name+"-1"
}
