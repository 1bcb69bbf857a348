package api

import (
	"cmp"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	datav1 "example.com/tandem/proto/data/v1"
	"example.com/tandem/service-a/internal/backend"
)

// params are the parameters of a call to service-b.
type params struct {
	backend  backend.Backend
	via, key string
}

// parseParams parses ?via= and ?key=.
func parseParams(query url.Values, backends map[string]backend.Backend) (params, error) {
	b, via, err := parseVia(query, backends)
	if err != nil {
		return params{}, err
	}
	key, err := datav1.KeyFromQuery(query)
	return params{b, via, key}, err
}

// parseVia returns the backend that ?via= names; the default is http.
func parseVia(query url.Values, backends map[string]backend.Backend) (backend.Backend, string, error) {
	via := "http"
	if query.Has("via") {
		via = query.Get("via")
	}
	b, ok := backends[via]
	if !ok {
		valid := slices.SortedFunc(maps.Keys(backends), func(a, b string) int {
			return cmp.Or(cmp.Compare(len(a), len(b)), cmp.Compare(b, a)) // http, grpc, grpc-service
		})
		last := len(valid) - 1
		return nil, "", fmt.Errorf("via is %.20q: want %s or %s", via, strings.Join(valid[:last], ", "), valid[last])
	}
	return b, via, nil
}

// The maximum number of calls of one request to /api/spread or /api/live, and the default
// number for /api/spread.
const maxCount, defaultCount = 1000, 100

// parseCount parses ?n=, a number of calls.
func parseCount(query url.Values) (int, error) {
	if !query.Has("n") {
		return defaultCount, nil
	}
	n, err := strconv.Atoi(query.Get("n"))
	if err != nil || n < 1 || n > maxCount {
		return 0, fmt.Errorf("n is %.20q: want a whole number, 1 to %d", query.Get("n"), maxCount)
	}
	return n, nil
}

// parseInterval parses ?interval=, such as 500ms; the default is that of the
// contract.
func parseInterval(query url.Values) (time.Duration, error) {
	if !query.Has("interval") {
		return datav1.DefaultInterval, nil
	}
	d, err := time.ParseDuration(query.Get("interval"))
	if err != nil {
		return 0, fmt.Errorf("interval is %.20q: want a duration such as 500ms", query.Get("interval"))
	}
	return datav1.CheckInterval(durationpb.New(d))
}
