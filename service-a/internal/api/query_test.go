package api

import (
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	datav1 "example.com/tandem/proto/data/v1"
	"example.com/tandem/service-a/internal/backend"
)

var backends = map[string]backend.Backend{"http": &backend.HTTP{}, "grpc": &backend.GRPC{}}

func TestParseVia(t *testing.T) {
	for query, want := range map[string]string{"": "http", "via=http": "http", "via=grpc": "grpc", "via=grpc&via=http": "grpc"} {
		b, via, err := parseVia(values(t, query), backends)
		require.NoError(t, err, query)
		assert.Equal(t, want, via)
		assert.Same(t, backends[want], b)
	}
	for _, query := range []string{"via=", "via=HTTP", "via=other", "via=%00", "via=" + strings.Repeat("x", 1000)} {
		_, _, err := parseVia(values(t, query), backends)
		require.ErrorContains(t, err, "want http or grpc", query)
		assert.Less(t, len(err.Error()), 120, "the error shortens a long value")
	}
}

// The error names every way that there is.
func TestParseVia_NamesEveryWay(t *testing.T) {
	all := map[string]backend.Backend{"http": &backend.HTTP{}, "grpc": &backend.GRPC{}, "grpc-service": &backend.GRPC{}}
	_, via, err := parseVia(values(t, "via=grpc-service"), all)
	require.NoError(t, err)
	assert.Equal(t, "grpc-service", via)
	_, _, err = parseVia(values(t, "via=tcp"), all)
	require.EqualError(t, err, `via is "tcp": want http, grpc or grpc-service`)
}

func TestParseCount(t *testing.T) {
	for query, want := range map[string]int{"": 100, "n=1": 1, "n=1000": 1000} {
		n, err := parseCount(values(t, query))
		require.NoError(t, err, query)
		assert.Equal(t, want, n)
	}
	for _, query := range []string{"n=", "n=0", "n=-1", "n=1001", "n=1000000000", "n=1e3", "n=99999999999999999999", "n=three"} {
		_, err := parseCount(values(t, query))
		require.ErrorContains(t, err, "want a whole number, 1 to 1000", query)
	}
}

func TestParseInterval(t *testing.T) {
	for query, want := range map[string]time.Duration{"": time.Second, "interval=100ms": 100 * time.Millisecond, "interval=1m": time.Minute} {
		d, err := parseInterval(values(t, query))
		require.NoError(t, err, query)
		assert.Equal(t, want, d)
	}
	for _, query := range []string{"interval=", "interval=5", "interval=1ns", "interval=-1s", "interval=61s", "interval=9999999h"} {
		_, err := parseInterval(values(t, query))
		require.ErrorContains(t, err, "interval is", query)
	}
}

func values(t *testing.T, query string) url.Values {
	v, err := url.ParseQuery(query)
	require.NoError(t, err)
	return v
}

// Every query parses to values that the contract permits, or to an error.
func FuzzQuery(f *testing.F) {
	for _, seed := range []string{"", "via=grpc&n=3&key=ada&interval=1s", "n=0", "key=%ff", "interval=1e9h", "via=%00", "n=٣"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, query string) {
		v, _ := url.ParseQuery(query) // net/http also ignores pairs that do not parse
		if b, via, err := parseVia(v, backends); err == nil {
			assert.Same(t, backends[via], b)
		}
		if n, err := parseCount(v); err == nil {
			assert.True(t, n >= 1 && n <= maxCount, n)
		}
		if key, err := datav1.KeyFromQuery(v); err == nil && key != "" {
			assert.NoError(t, datav1.CheckKey(key))
		}
		if d, err := parseInterval(v); err == nil {
			assert.True(t, d >= datav1.MinInterval && d <= datav1.MaxInterval, d)
		}
	})
}
