package datav1_test

import (
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/durationpb"

	datav1 "example.com/tandem/proto/data/v1"
)

func TestCheckKey(t *testing.T) {
	for name, c := range map[string]struct{ key, err string }{
		"one character":      {"k", ""},
		"64 characters":      {strings.Repeat("k", 64), ""},
		"64 that are wide":   {strings.Repeat("語", 64), ""},
		"space and quotes":   {`a "b" c`, ""},
		"empty":              {"", "key is empty: leave it out, or give 1 to 64 characters"},
		"65 characters":      {strings.Repeat("k", 65), "key has 65 characters: want 1 to 64"},
		"a newline":          {"a\nb", "key holds the control character U+000A"},
		"NUL":                {"\x00", "key holds the control character U+0000"},
		"an escape":          {"a\x1b[2J", "key holds the control character U+001B"},
		"a C1 control":       {"a\u0085b", "key holds the control character U+0085"},
		"broken UTF-8":       {"a\xff", "key is not valid UTF-8"},
		"long, broken UTF-8": {strings.Repeat("\xff", 65), "key has 65 characters: want 1 to 64"},
	} {
		t.Run(name, func(t *testing.T) {
			if err := datav1.CheckKey(c.key); c.err == "" {
				assert.NoError(t, err)
			} else {
				assert.EqualError(t, err, c.err)
			}
		})
	}
}

func TestARequestMayLeaveItsKeyOut(t *testing.T) {
	require.NoError(t, (&datav1.GetDataRequest{}).Check())
	require.Error(t, (&datav1.GetDataRequest{Key: "\n"}).Check())
	_, err := (&datav1.WatchDataRequest{}).Check()
	require.NoError(t, err)
	_, err = (&datav1.WatchDataRequest{Key: "\n"}).Check()
	require.Error(t, err)
}

func TestCheckInterval(t *testing.T) {
	for name, c := range map[string]struct {
		given *durationpb.Duration
		want  time.Duration
		err   string
	}{
		"left out":  {nil, time.Second, ""},
		"shortest":  {durationpb.New(100 * time.Millisecond), 100 * time.Millisecond, ""},
		"longest":   {durationpb.New(time.Minute), time.Minute, ""},
		"too short": {durationpb.New(99 * time.Millisecond), 0, "interval is 99ms: want 100ms to 1m0s"},
		"too long":  {durationpb.New(time.Minute + 1), 0, "interval is 1m0.000000001s: want 100ms to 1m0s"},
		"zero":      {durationpb.New(0), 0, "interval is 0s: want 100ms to 1m0s"},
		"negative":  {durationpb.New(-time.Second), 0, "interval is -1s: want 100ms to 1m0s"},
		"malformed": {&durationpb.Duration{Seconds: 1, Nanos: -1}, 0, "interval: "},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := datav1.CheckInterval(c.given)
			if c.err == "" {
				require.NoError(t, err)
				assert.Equal(t, c.want, got)
			} else {
				assert.ErrorContains(t, err, c.err)
			}
		})
	}
}

// A key that passes can be sent by either transport and written to any log.
func FuzzCheckKey(f *testing.F) {
	for _, seed := range []string{"", "k", "a\nb", "\xff", strings.Repeat("語", 65), "a\u0085"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, key string) {
		if datav1.CheckKey(key) != nil {
			return
		}
		assert.True(t, utf8.ValidString(key))
		assert.LessOrEqual(t, utf8.RuneCountInString(key), datav1.MaxKeyLength)
		assert.NotContains(t, key, "\n")
		assert.NotContains(t, key, "\x00")
	})
}
