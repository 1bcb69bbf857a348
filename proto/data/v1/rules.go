package datav1

import (
	"errors"
	"fmt"
	"net/url"
	"time"
	"unicode"
	"unicode/utf8"

	"google.golang.org/protobuf/types/known/durationpb"
)

// This file holds the rules of data.proto that protobuf types cannot express.
// service-b checks every request. service-a checks its callers' input with the
// same functions, so that an invalid request makes no call.

// MaxKeyLength is the maximum length of a key, in characters.
const MaxKeyLength = 64

// The bounds and the default of the interval of WatchData.
const (
	MinInterval     = 100 * time.Millisecond
	MaxInterval     = time.Minute
	DefaultInterval = time.Second
)

// Check returns an error if the key is invalid. An empty key is valid: it means
// that the request has none.
func (r *GetDataRequest) Check() error { return checkOptionalKey(r.GetKey()) }

// Check returns the interval of the stream, or an error if the key or the
// interval is invalid. An empty key is valid: it means that the request has none.
func (r *WatchDataRequest) Check() (time.Duration, error) {
	if err := checkOptionalKey(r.GetKey()); err != nil {
		return 0, err
	}
	return CheckInterval(r.GetInterval())
}

// KeyFromQuery returns the value of the parameter "key", or "" if there is none.
// It returns an error for an invalid key. Unlike a message, a query can hold an
// empty key, which is invalid.
func KeyFromQuery(query url.Values) (string, error) {
	if !query.Has("key") {
		return "", nil
	}
	return query.Get("key"), CheckKey(query.Get("key"))
}

func checkOptionalKey(key string) error {
	if key == "" {
		return nil
	}
	return CheckKey(key)
}

// CheckKey returns an error unless the key has 1 to MaxKeyLength characters of
// valid UTF-8, none of them a control character.
func CheckKey(key string) error {
	switch n := utf8.RuneCountInString(key); {
	case n == 0:
		return fmt.Errorf("key is empty: omit it, or use 1 to %d characters", MaxKeyLength)
	case n > MaxKeyLength:
		return fmt.Errorf("key has %d characters: want 1 to %d", n, MaxKeyLength)
	case !utf8.ValidString(key):
		return errors.New("key is not valid UTF-8")
	}
	for _, r := range key {
		if unicode.IsControl(r) {
			return fmt.Errorf("key contains the control character %U", r)
		}
	}
	return nil
}

// CheckInterval returns d as a time.Duration, or DefaultInterval if d is nil. It
// returns an error if d is malformed, or outside MinInterval and MaxInterval.
func CheckInterval(d *durationpb.Duration) (time.Duration, error) {
	if d == nil {
		return DefaultInterval, nil
	}
	if err := d.CheckValid(); err != nil {
		return 0, fmt.Errorf("interval: %w", err)
	}
	if i := d.AsDuration(); i < MinInterval || i > MaxInterval {
		return 0, fmt.Errorf("interval is %s: want %s to %s", i, MinInterval, MaxInterval)
	}
	return d.AsDuration(), nil
}
