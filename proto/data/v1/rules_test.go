package datav1_test

import (
	"net/url"
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
		"one character":          {key: "k"},
		"64 characters":          {key: strings.Repeat("k", 64)},
		"64 wide characters":     {key: strings.Repeat("語", 64)},
		"space and quotes":       {key: `a "b" c`},
		"empty":                  {key: "", err: "key is empty: omit it, or use 1 to 64 characters"},
		"65 characters":          {key: strings.Repeat("k", 65), err: "key has 65 characters: want 1 to 64"},
		"newline":                {key: "a\nb", err: "key contains the control character U+000A"},
		"NUL":                    {key: "\x00", err: "key contains the control character U+0000"},
		"escape":                 {key: "a\x1b[2J", err: "key contains the control character U+001B"},
		"C1 control":             {key: "a\u0085b", err: "key contains the control character U+0085"},
		"invalid UTF-8":          {key: "a\xff", err: "key is not valid UTF-8"},
		"long and invalid UTF-8": {key: strings.Repeat("\xff", 65), err: "key has 65 characters: want 1 to 64"},
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

func TestCheck_KeyIsOptional(t *testing.T) {
	require.NoError(t, (&datav1.GetDataRequest{}).Check())
	require.Error(t, (&datav1.GetDataRequest{Key: "\n"}).Check())
	_, err := (&datav1.WatchDataRequest{}).Check()
	require.NoError(t, err)
	_, err = (&datav1.WatchDataRequest{Key: "\n"}).Check()
	require.Error(t, err)
}

func TestKeyFromQuery(t *testing.T) {
	for query, want := range map[string]string{"": "", "other=1": "", "key=ada": "ada", "key=a&key=b": "a"} {
		values, err := url.ParseQuery(query)
		require.NoError(t, err)
		key, err := datav1.KeyFromQuery(values)
		require.NoError(t, err, query)
		assert.Equal(t, want, key, query)
	}
	for _, key := range []string{"", "a\nb", "\xff"} {
		_, err := datav1.KeyFromQuery(url.Values{"key": {key}})
		require.Error(t, err, "%q", key)
	}
}

func TestCheckInterval(t *testing.T) {
	for name, c := range map[string]struct {
		given *durationpb.Duration
		want  time.Duration
		err   string
	}{
		"not set":   {given: nil, want: time.Second},
		"shortest":  {given: durationpb.New(100 * time.Millisecond), want: 100 * time.Millisecond},
		"longest":   {given: durationpb.New(time.Minute), want: time.Minute},
		"too short": {given: durationpb.New(99 * time.Millisecond), err: "interval is 99ms: want 100ms to 1m0s"},
		"too long":  {given: durationpb.New(time.Minute + 1), err: "interval is 1m0.000000001s: want 100ms to 1m0s"},
		"zero":      {given: durationpb.New(0), err: "interval is 0s: want 100ms to 1m0s"},
		"negative":  {given: durationpb.New(-time.Second), err: "interval is -1s: want 100ms to 1m0s"},
		"malformed": {given: &durationpb.Duration{Seconds: 1, Nanos: -1}, err: "interval: "},
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

// A valid key can be sent over either transport and written to any log.
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
