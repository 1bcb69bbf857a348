package logtext

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const start = `{"time":"2026-01-02T03:04:05.6789Z","level":"INFO","msg":"m"`

func TestLine_IsForReading(t *testing.T) {
	format := Format{Hide: func(key, value string) bool {
		return key == "service" && value == "service-a" || key == "pod" && value == "service-a-1"
	}}
	long := strings.Repeat("x", 1<<20)
	for name, tc := range map[string]struct{ line, want string }{
		"a message":                   {line: start + `}`, want: "03:04:05.678 m"},
		"attributes in order":         {line: start + `,"z":1,"a":"b","d":0.25,"t":true}`, want: "03:04:05.678 m z=1 a=b d=0.25 t=true"},
		"levels":                      {line: strings.Replace(start, "INFO", "DEBUG+2", 1) + `}`, want: "03:04:05.678 DEBUG+2 m"},
		"hidden attributes":           {line: start + `,"service":"service-a","pod":"service-a-1","span_id":"0102"}`, want: "03:04:05.678 m"},
		"another service and pod":     {line: start + `,"service":"x","pod":"y"}`, want: "03:04:05.678 m service=x pod=y"},
		"a trace id":                  {line: start + `,"trace_id":"0123456789abcdef"}`, want: "03:04:05.678 m trace=01234567"},
		"a short trace id":            {line: start + `,"trace_id":"0123"}`, want: "03:04:05.678 m trace_id=0123"},
		"spaces and quotes":           {line: start + `,"a":"b c","d":"e\"f","g":"h=i","j":""}`, want: `03:04:05.678 m a="b c" d="e\"f" g="h=i" j=""`},
		"groups and lists":            {line: start + `,"g":{"a":1,"b":"c d"},"l":[1, 2],"n":null}`, want: `03:04:05.678 m g={"a":1,"b":"c d"} l=[1, 2] n=null`},
		"an attribute named msg":      {line: start + `,"msg":"n","time":"t"}`, want: "03:04:05.678 m msg=n time=t"},
		"big numbers":                 {line: start + `,"n":12345678901234567890}`, want: "03:04:05.678 m n=12345678901234567890"},
		"letters outside ASCII":       {line: start + `,"a":"grüße"}`, want: "03:04:05.678 m a=grüße"},
		"control characters":          {line: start + `,"path":"/\u001b[2J","a\u001b":"b","l":["\u009b"]}`, want: `03:04:05.678 m path="/\x1b[2J" "a\x1b"=b l=["\u009b"]`},
		"a line break in the message": {line: strings.Replace(start, `"m"`, `"m\nn"`, 1) + `}`, want: `03:04:05.678 "m\nn"`},
		"no time":                     {line: `{"level":"INFO","msg":"m"}`, want: `{"level":"INFO","msg":"m"}`},
		"an invalid time":             {line: `{"time":"now","level":"INFO","msg":"m"}`, want: `{"time":"now","level":"INFO","msg":"m"}`},
		"text":                        {line: "panic: no", want: "panic: no"},
		"an empty line":               {line: "", want: ""},
		"broken JSON":                 {line: start, want: start},
		"text after the JSON":         {line: start + `} x`, want: start + `} x`},
		"a JSON array":                {line: `[1]`, want: `[1]`},
		"a long line":                 {line: start + `,"a":"` + long + `"}`, want: "03:04:05.678 m a=" + long},
		"a long text":                 {line: long, want: long},
	} {
		t.Run(name, func(t *testing.T) {
			text, ok := format.Line([]byte(tc.line))
			if !ok {
				text = tc.line
			}
			assert.Equal(t, tc.want, text)
		})
	}
}

// At a terminal, what repeats in each line is dim, and levels above info have colors.
func TestLine_Colors(t *testing.T) {
	for level, want := range map[string]string{"INFO": "", "WARN": "\x1b[33mWARN\x1b[0m ", "ERROR": "\x1b[31mERROR\x1b[0m "} {
		text, ok := Format{Color: true}.Line([]byte(strings.Replace(start, "INFO", level, 1) + `,"a":"b"}`))
		assert.True(t, ok)
		assert.Equal(t, "\x1b[2m03:04:05.678\x1b[0m "+want+"m \x1b[2ma=\x1b[0mb", text)
	}
}

func TestIsTerminal_NotForFiles(t *testing.T) {
	for _, name := range []string{os.DevNull, filepath.Join(t.TempDir(), "file")} {
		file, err := os.Create(name)
		require.NoError(t, err)
		assert.False(t, IsTerminal(file), name)
		require.NoError(t, file.Close())
	}
}

func FuzzLine(f *testing.F) {
	f.Add([]byte(start + `,"a":"b"}`))
	f.Add([]byte(`{"time":"2026-01-02T03:04:05Z","level":"","msg":"\u001b","trace_id":"12345678é"}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		if text, ok := (Format{}).Line(line); ok {
			assert.Equal(t, printable(text), text, "a rendered line has control characters")
		}
	})
}
