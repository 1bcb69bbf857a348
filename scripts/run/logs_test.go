package main

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/assert"
)

const start = `{"time":"2026-01-02T03:04:05.6789Z","level":"INFO","msg":"m"`

// Each line has its service before it, and not again as an attribute.
func TestServiceLog_PrefixesLines(t *testing.T) {
	var b bytes.Buffer
	log := (&output{w: &b}).log("service-a")
	_, _ = log.Write([]byte(start + `,"service":"service-a","pod":"service-a-1","a":"b"}` + "\n" + start + `,"service":"x","pod":"y"}` + "\npanic: no\n"))
	assert.Equal(t, "service-a  03:04:05.678 m a=b\nservice-a  03:04:05.678 m service=x pod=y\nservice-a  panic: no\n", b.String())
}

func TestServiceLog_JoinsPieces(t *testing.T) {
	var b bytes.Buffer
	out := &output{w: &b}
	first, second := out.log("service-a"), out.log("service-b")
	_, _ = first.Write([]byte("one\ntw"))
	_, _ = second.Write([]byte("other\n"))
	_, _ = first.Write([]byte("o\n\nlast, without a line break"))
	first.flush()
	second.flush()
	assert.Equal(t, "service-a  one\nservice-b  other\nservice-a  two\nservice-a  \nservice-a  last, without a line break\n", b.String())
}

func TestServiceLog_Raw(t *testing.T) {
	var b bytes.Buffer
	log := (&output{w: &b, raw: true}).log("service-a")
	_, _ = log.Write([]byte(start + "}\ntext\n"))
	assert.Equal(t, start+"}\ntext\n", b.String()) //nolint:testifylint // JSONEq would accept other spaces
}
