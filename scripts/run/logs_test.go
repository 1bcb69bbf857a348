package main

import (
	"bytes"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const start = `{"time":"2026-01-02T03:04:05.6789Z","level":"INFO","msg":"m"`

func TestServiceLog_RendersLines(t *testing.T) {
	long := strings.Repeat("x", 1<<20)
	for name, tc := range map[string]struct{ line, want string }{
		"an event":                {start + `}`, "03:04:05.678 m"},
		"attributes in order":     {start + `,"z":1,"a":"b","d":0.25,"t":true}`, "03:04:05.678 m z=1 a=b d=0.25 t=true"},
		"levels":                  {strings.Replace(start, "INFO", "DEBUG+2", 1) + `}`, "03:04:05.678 DEBUG+2 m"},
		"says what the name says": {start + `,"service":"service-a","pod":"service-a-1","span_id":"0102"}`, "03:04:05.678 m"},
		"says something else":     {start + `,"service":"x","pod":"y"}`, "03:04:05.678 m service=x pod=y"},
		"a trace":                 {start + `,"trace_id":"0123456789abcdef"}`, "03:04:05.678 m trace=01234567"},
		"half a trace":            {start + `,"trace_id":"0123"}`, "03:04:05.678 m trace_id=0123"},
		"spaces and quotes":       {start + `,"a":"b c","d":"e\"f","g":"h=i","j":""}`, `03:04:05.678 m a="b c" d="e\"f" g="h=i" j=""`},
		"groups and lists":        {start + `,"g":{"a":1,"b":"c d"},"l":[1, 2],"n":null}`, `03:04:05.678 m g={"a":1,"b":"c d"} l=[1, 2] n=null`},
		"an attribute named msg":  {start + `,"msg":"n","time":"t"}`, "03:04:05.678 m msg=n time=t"},
		"big numbers":             {start + `,"n":12345678901234567890}`, "03:04:05.678 m n=12345678901234567890"},
		"letters of the world":    {start + `,"a":"grüße"}`, "03:04:05.678 m a=grüße"},
		"an attack":               {start + `,"path":"/\u001b[2J","a\u001b":"b","l":["\u009b"]}`, `03:04:05.678 m path="/\x1b[2J" "a\x1b"=b l=["\u009b"]`},
		"several lines in one":    {strings.Replace(start, `"m"`, `"m\nn"`, 1) + `}`, `03:04:05.678 "m\nn"`},
		"no time":                 {`{"level":"INFO","msg":"m"}`, `{"level":"INFO","msg":"m"}`},
		"no time that is one":     {`{"time":"now","level":"INFO","msg":"m"}`, `{"time":"now","level":"INFO","msg":"m"}`},
		"text":                    {"panic: no", "panic: no"},
		"nothing":                 {"", ""},
		"broken JSON":             {start, start},
		"JSON and more":           {start + `} x`, start + `} x`},
		"another JSON":            {`[1]`, `[1]`},
		"a long line":             {start + `,"a":"` + long + `"}`, "03:04:05.678 m a=" + long},
		"a long text":             {long, long},
	} {
		t.Run(name, func(t *testing.T) {
			var b bytes.Buffer
			log := (&output{w: &b}).log("service-a")
			for rest := tc.line + "\n"; rest != ""; {
				n := min(len(rest), 4096)
				_, err := log.Write([]byte(rest[:n]))
				require.NoError(t, err)
				rest = rest[n:]
			}
			log.flush()
			assert.Equal(t, "service-a  "+tc.want+"\n", b.String())
		})
	}
}

func TestServiceLog_JoinsPieces(t *testing.T) {
	var b bytes.Buffer
	out := &output{w: &b}
	first, second := out.log("service-a"), out.log("service-b")
	_, _ = first.Write([]byte("one\ntw"))
	_, _ = second.Write([]byte("other\n"))
	_, _ = first.Write([]byte("o\n\nlast, without an end"))
	first.flush()
	second.flush()
	assert.Equal(t, "service-a  one\nservice-b  other\nservice-a  two\nservice-a  \nservice-a  last, without an end\n", b.String())
}

func TestServiceLog_Raw(t *testing.T) {
	var b bytes.Buffer
	log := (&output{w: &b, raw: true}).log("service-a")
	_, _ = log.Write([]byte(start + "}\ntext\n"))
	assert.Equal(t, start+"}\ntext\n", b.String()) //nolint:testifylint // to the letter
}

func FuzzServiceLog_Render(f *testing.F) {
	f.Add([]byte(start + `,"a":"b"}`))
	f.Add([]byte(`{"time":"2026-01-02T03:04:05Z","level":"","msg":"\u001b","trace_id":"12345678é"}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		if text, ok := (&output{}).log("service-a").render(line); ok {
			assert.Equal(t, printable(text), text, "what is rendered does nothing to a terminal")
		}
	})
}
