// Package api is what service-a serves.
package api

import (
	"fmt"
	"net/url"
	"strconv"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	datav1 "example.com/tandem/proto/data/v1"
	"example.com/tandem/service-a/internal/backend"
)

// MaxSpread is the most calls that one /api/spread makes.
const MaxSpread = 1000

const defaultSpread = 100

// question is what one call or many ask.
type question struct {
	backend  backend.Backend
	via, key string
}

// questionOf reads ?via= and ?key=.
func questionOf(query url.Values, backends map[string]backend.Backend) (question, error) {
	b, via, err := viaOf(query, backends)
	if err != nil {
		return question{}, err
	}
	key, err := keyOf(query)
	return question{b, via, key}, err
}

// viaOf picks the backend that ?via= names; http if it is left out.
func viaOf(query url.Values, backends map[string]backend.Backend) (backend.Backend, string, error) {
	via := "http"
	if query.Has("via") {
		via = query.Get("via")
	}
	b, ok := backends[via]
	if !ok {
		return nil, "", fmt.Errorf("via is %.20q: want http or grpc", via)
	}
	return b, via, nil
}

// keyOf reads ?key=, which may be left out but not be empty.
func keyOf(query url.Values) (string, error) {
	if !query.Has("key") {
		return "", nil
	}
	return query.Get("key"), datav1.CheckKey(query.Get("key"))
}

// countOf reads ?n=, 100 if it is left out.
func countOf(query url.Values) (int, error) {
	if !query.Has("n") {
		return defaultSpread, nil
	}
	n, err := strconv.Atoi(query.Get("n"))
	if err != nil || n < 1 || n > MaxSpread {
		return 0, fmt.Errorf("n is %.20q: want a whole number, 1 to %d", query.Get("n"), MaxSpread)
	}
	return n, nil
}

// intervalOf reads ?interval=, such as 500ms; the contract's default if it is
// left out.
func intervalOf(query url.Values) (time.Duration, error) {
	if !query.Has("interval") {
		return datav1.DefaultInterval, nil
	}
	d, err := time.ParseDuration(query.Get("interval"))
	if err != nil {
		return 0, fmt.Errorf("interval is %.20q: want a duration such as 500ms", query.Get("interval"))
	}
	return datav1.CheckInterval(durationpb.New(d))
}
