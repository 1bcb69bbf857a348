package identity

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"example.com/tandem/kit/call"
	"example.com/tandem/kit/telemetry"
)

const (
	// loadTimeout is the limit of one load: two requests to an issuer, or one exchange.
	loadTimeout = 5 * time.Second
	// firstBackoff is the pause after a failed load. It doubles with each failure in a
	// row, up to maxBackoff.
	firstBackoff, maxBackoff = time.Second, 10 * time.Second
	// minRenewal is the least time between loads of values that expire soon.
	minRenewal = 10 * time.Second
	// maxWait is how long a call waits for a load. It is below the usual deadline of a call
	// (2 s), so that the caller learns the reason.
	maxWait = time.Second
	// staleWait is how long a call waits for a load while the old value is stale. It is below half
	// of the usual deadline, which is the time of a first attempt: an issuer that hangs fails
	// no call.
	staleWait = maxWait / 2
	// reloadBurst reloads may follow each other, and then one every reloadEvery.
	reloadBurst, reloadEvery = 5, 10 * time.Second
)

var errSlow = fmt.Errorf("the load takes longer than %s", maxWait)

// cache holds a value that comes from elsewhere, and loads it when it is first needed.
// Callers share one load. While an old value is usable, get returns it and the load runs
// in the background.
//
//	value                      get returns
//	none, or not usable        the result of a load, or the last error during a backoff
//	usable, staleAt has passed the result of a load, if it comes within staleWait, else the old value
//	usable, renewAt has passed the old value; a load runs, unless there is a backoff
//	usable                     the value
type cache[T any] struct {
	load  func(context.Context) (loaded[T], error)
	log   *slog.Logger
	what  string // is loaded: a label of loads
	loads *prometheus.CounterVec

	mu       sync.Mutex
	last     loaded[T]
	started  time.Time // when the last load started, whatever its result
	err      error     // of the last load
	failures int       // in a row
	notUntil time.Time // of the next load: the end of the backoff
	burstAt  time.Time // when reloadBurst reloads are possible again
	inFlight chan struct{}
}

// newCache returns an empty cache. what names the value in the log and in the metric.
func newCache[T any](what string, tel *telemetry.Telemetry, load func(context.Context) (loaded[T], error)) *cache[T] {
	return &cache[T]{load: load, what: what, log: tel.Log, loads: call.Register(tel.Metrics, prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "identity_loads_total",
		Help: "Loads of tokens, and of the issuer's keys, by result.",
	}, []string{"what", "result"}))}
}

// loaded is the result of a load. It is usable from then until usableUntil.
type loaded[T any] struct {
	value                         T
	renewAt, staleAt, usableUntil time.Time
}

// get returns a usable value. If there is none, it waits for a load until ctx ends or
// maxWait has passed. If the value is stale, it waits for staleWait at most, and for no
// load after one that failed.
func (c *cache[T]) get(ctx context.Context) (T, error) {
	c.mu.Lock()
	now := time.Now()
	usable := now.Before(c.last.usableUntil)
	if usable && now.Before(c.last.renewAt) {
		defer c.mu.Unlock()
		return c.last.value, nil
	}
	old, done := c.last.value, c.start(now)
	wait := !now.Before(c.last.staleAt) && c.failures == 0
	waitUntil := c.started.Add(staleWait) // for the load as a whole: a load that hangs delays few calls
	c.mu.Unlock()
	if !usable {
		return c.wait(ctx, done, maxWait)
	}
	if wait {
		if value, err := c.wait(ctx, done, waitUntil.Sub(now)); err == nil {
			return value, nil
		}
	}
	return old, nil
}

// reload returns a value whose load started less than interval ago, and loads it
// otherwise. If there were too many reloads, it returns the old value.
func (c *cache[T]) reload(ctx context.Context, interval time.Duration) (T, error) {
	c.mu.Lock()
	now := time.Now()
	if c.inFlight == nil && c.err == nil && (now.Sub(c.started) < interval || !c.takeReload(now)) {
		defer c.mu.Unlock()
		return c.last.value, nil
	}
	done := c.start(now)
	c.mu.Unlock()
	value, err := c.wait(ctx, done, maxWait)
	if err != nil {
		return value, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.last.value, c.err // unlike get, not the old value after a failure
}

// takeReload reports whether a reload is permitted, and counts it. The caller holds c.mu.
func (c *cache[T]) takeReload(now time.Time) bool {
	if c.burstAt.Sub(now) > (reloadBurst-1)*reloadEvery {
		return false
	}
	if c.burstAt.Before(now) {
		c.burstAt = now
	}
	c.burstAt = c.burstAt.Add(reloadEvery)
	return true
}

// start starts a load, or joins the one in flight. It returns nil during a backoff. The
// caller holds c.mu.
func (c *cache[T]) start(now time.Time) (done chan struct{}) {
	if c.inFlight != nil || now.Before(c.notUntil) {
		return c.inFlight
	}
	done = make(chan struct{})
	c.inFlight, c.started = done, now
	go func() {
		defer close(done)
		// Not the context of the caller that happens to be first: others wait too.
		ctx, cancel := context.WithTimeout(context.Background(), loadTimeout)
		defer cancel()
		value, err := c.load(ctx)
		c.finish(value, err)
	}()
	return done
}

func (c *cache[T]) finish(value loaded[T], err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	if err == nil && !now.Before(value.usableUntil) {
		err = fmt.Errorf("expired at %s", value.usableUntil.UTC().Format(time.RFC3339))
	}
	c.inFlight, c.err = nil, err
	if err == nil {
		if soonest := now.Add(minRenewal); value.renewAt.Before(soonest) {
			value.renewAt = soonest
		}
		c.last, c.failures, c.notUntil = value, 0, time.Time{}
		c.loads.WithLabelValues(c.what, "ok").Inc()
		return
	}
	c.notUntil = now.Add(min(firstBackoff<<min(c.failures, 10), maxBackoff))
	c.failures++
	c.loads.WithLabelValues(c.what, "failed").Inc()
	c.log.Warn("identity: load failed", "what", c.what, "error", telemetry.Truncate(err.Error()))
}

// wait waits for a load, for as long as limit. done is nil if none runs.
func (c *cache[T]) wait(ctx context.Context, done chan struct{}, limit time.Duration) (T, error) {
	if done != nil {
		var none T
		timer := time.NewTimer(limit)
		defer timer.Stop()
		select {
		case <-done:
		case <-timer.C:
			return none, errSlow
		case <-ctx.Done():
			return none, context.Cause(ctx)
		}
	}
	return c.current()
}

// current returns the value, or the error of the last load if there is no usable value.
func (c *cache[T]) current() (T, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil || time.Now().Before(c.last.usableUntil) {
		return c.last.value, nil
	}
	var none T
	return none, c.err
}
