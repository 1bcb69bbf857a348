package identity

import (
	"context"
	"errors"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"example.com/tandem/kit/kittest"
)

// fakeLoad counts loads. Each takes a while, and returns err or its number.
type fakeLoad struct {
	n           int
	takes       time.Duration
	renew, live time.Duration
	err         error
}

func (f *fakeLoad) load(ctx context.Context) (loaded[int], error) {
	f.n++
	n := f.n
	select {
	case <-time.After(f.takes):
	case <-ctx.Done():
		return loaded[int]{}, ctx.Err()
	}
	now := time.Now()
	return loaded[int]{n, now.Add(f.renew), now.Add(f.live)}, f.err
}

// The states of a cache, in the order in which an outage brings them about.
func TestCache_RenewsAndSurvivesOutage(t *testing.T) {
	tel := kittest.Telemetry(t, io.Discard)
	synctest.Test(t, func(t *testing.T) {
		f := &fakeLoad{takes: 100 * time.Millisecond, renew: time.Minute, live: 10 * time.Minute}
		c := newCache("token", tel, f.load)
		get := func(want, loads int) {
			t.Helper()
			got, err := c.get(t.Context())
			require.NoError(t, err)
			assert.Equal(t, want, got)
			synctest.Wait()
			assert.Equal(t, loads, f.n)
		}
		get(1, 1)
		get(1, 1)
		time.Sleep(time.Minute)
		get(1, 2) // the old value at once; a load runs
		time.Sleep(time.Second)
		get(2, 2)

		f.err = errors.New("down")
		time.Sleep(time.Minute)
		for start := time.Now(); time.Since(start) < 5*time.Minute; time.Sleep(100 * time.Millisecond) {
			got, err := c.get(t.Context())
			require.NoError(t, err, "the old value is usable")
			assert.Equal(t, 2, got)
		}
		loads := f.n - 2
		assert.InDelta(t, 32, loads, 3, "in 5 minutes at 1, 2, 4, 8, then every 10 s")

		time.Sleep(5 * time.Minute)
		_, err := c.get(t.Context())
		require.ErrorContains(t, err, "down")
		_, err = c.get(t.Context())
		require.ErrorContains(t, err, "down", "during the backoff")

		f.err = nil
		time.Sleep(maxBackoff)
		got, err := c.get(t.Context())
		require.NoError(t, err)
		assert.Equal(t, f.n, got)
	})
}

// A call waits for a load, but not for longer than maxWait; a load has a time limit.
func TestCache_BoundsWaits(t *testing.T) {
	tel := kittest.Telemetry(t, io.Discard)
	synctest.Test(t, func(t *testing.T) {
		f := &fakeLoad{takes: time.Hour, live: time.Minute}
		c := newCache("token", tel, f.load)
		start := time.Now()
		_, err := c.get(t.Context())
		require.ErrorIs(t, err, errSlow)
		assert.Equal(t, maxWait, time.Since(start))
		time.Sleep(loadTimeout - maxWait + firstBackoff/2)
		_, err = c.get(t.Context())
		require.ErrorIs(t, err, context.DeadlineExceeded)
	})
}

// reload loads at most once in an interval, and returns an error if it cannot tell
// whether the value is current.
func TestCache_ReloadIsLimited(t *testing.T) {
	tel := kittest.Telemetry(t, io.Discard)
	synctest.Test(t, func(t *testing.T) {
		f := &fakeLoad{renew: time.Hour, live: time.Hour}
		c := newCache("keys", tel, f.load)
		for range 600 { // for a minute
			_, err := c.reload(t.Context(), 10*time.Second)
			require.NoError(t, err)
			time.Sleep(100 * time.Millisecond)
		}
		assert.Equal(t, 6, f.n)
		f.err = errors.New("down")
		time.Sleep(10 * time.Second)
		_, err := c.reload(t.Context(), 10*time.Second)
		require.Error(t, err)
		_, err = c.get(t.Context())
		require.NoError(t, err)
	})
}
