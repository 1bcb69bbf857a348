package datav1

import (
	"errors"
	"fmt"
	"time"
	"unicode"
	"unicode/utf8"

	"google.golang.org/protobuf/types/known/durationpb"
)

// The rules of data.proto that its types cannot say. Both sides hold to them
// by calling these: service-b must, and service-a refuses sooner.

// MaxKeyLength is how long a key may be, in characters.
const MaxKeyLength = 64

// The interval of WatchData.
const (
	MinInterval     = 100 * time.Millisecond
	MaxInterval     = time.Minute
	DefaultInterval = time.Second
)

// CheckKey returns an error if a key that was given breaks its rule: 1 to 64
// characters of UTF-8, none of them a control character.
func CheckKey(key string) error {
	switch n := utf8.RuneCountInString(key); {
	case n == 0:
		return fmt.Errorf("key is empty: leave it out, or give 1 to %d characters", MaxKeyLength)
	case n > MaxKeyLength:
		return fmt.Errorf("key has %d characters: want 1 to %d", n, MaxKeyLength)
	case !utf8.ValidString(key):
		return errors.New("key is not valid UTF-8")
	}
	for _, r := range key {
		if unicode.IsControl(r) {
			return fmt.Errorf("key holds the control character %U", r)
		}
	}
	return nil
}

// Check returns an error if the request breaks a rule; a key may be left out.
func (r *GetDataRequest) Check() error { return checkOptional(r.GetKey()) }

// Check returns the interval to keep to, or an error if the request breaks a
// rule; key and interval may be left out.
func (r *WatchDataRequest) Check() (time.Duration, error) {
	if err := checkOptional(r.GetKey()); err != nil {
		return 0, err
	}
	return CheckInterval(r.GetInterval())
}

// CheckInterval returns the interval of WatchData that d stands for: nil is
// the default. It returns an error for one that is out of bounds.
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

func checkOptional(key string) error {
	if key == "" {
		return nil
	}
	return CheckKey(key)
}
