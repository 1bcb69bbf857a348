package identity

import (
	"cmp"
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
	n                  int
	takes              time.Duration
	renew, stale, live time.Duration
	err                error
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
	return loaded[int]{n, now.Add(f.renew), now.Add(cmp.Or(f.stale, f.live)), now.Add(f.live)}, f.err
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

// While the value is stale, a call waits for a load. If the load hangs, calls wait for
// staleWait from its start; if it fails, they do not wait at all.
func TestCache_StaleValueIsRenewed(t *testing.T) {
	tel := kittest.Telemetry(t, io.Discard)
	synctest.Test(t, func(t *testing.T) {
		f := &fakeLoad{takes: 100 * time.Millisecond, renew: time.Minute, stale: 2 * time.Minute, live: time.Hour}
		c := newCache("keys", tel, f.load)
		get := func(want int, waits time.Duration) {
			t.Helper()
			start := time.Now()
			got, err := c.get(t.Context())
			require.NoError(t, err)
			assert.Equal(t, want, got)
			assert.Equal(t, waits, time.Since(start))
			synctest.Wait() // a load in the background has begun
		}
		get(1, f.takes)
		time.Sleep(2*time.Minute - time.Second)
		get(1, 0) // a load runs
		time.Sleep(3 * time.Minute)
		get(3, f.takes)

		f.takes = time.Hour
		time.Sleep(3 * time.Minute)
		get(3, staleWait)
		get(3, 0) // joins the load that hangs
		time.Sleep(loadTimeout + firstBackoff)
		get(3, 0) // another load hangs

		f.takes = 0
		time.Sleep(loadTimeout + 2*firstBackoff)
		get(3, 0) // a load runs: the issuer may hang still
		time.Sleep(time.Second)
		get(6, 0)
	})
}

// reload loads at most once in an interval. After reloadBurst loads it loads once every
// reloadEvery, until there was a time without any. It returns an error if it cannot tell
// whether the value is current.
func TestCache_ReloadIsLimited(t *testing.T) {
	tel := kittest.Telemetry(t, io.Discard)
	synctest.Test(t, func(t *testing.T) {
		f := &fakeLoad{renew: time.Hour, live: time.Hour}
		c := newCache("keys", tel, f.load)
		reload := func(d time.Duration) (loads int) {
			before := f.n
			for start := time.Now(); time.Since(start) < d; time.Sleep(100 * time.Millisecond) {
				_, err := c.reload(t.Context(), time.Second)
				require.NoError(t, err)
			}
			return f.n - before
		}
		assert.Equal(t, 4, reload(4*time.Second))
		assert.Equal(t, 6, reload(56*time.Second), "one at once, and at 10, 20, 30, 40 and 50 s")
		time.Sleep(reloadBurst * reloadEvery)
		assert.Equal(t, 4, reload(4*time.Second))

		f.err = errors.New("down")
		time.Sleep(10 * time.Second)
		_, err := c.reload(t.Context(), time.Second)
		require.Error(t, err)
		_, err = c.get(t.Context())
		require.NoError(t, err)
	})
}
