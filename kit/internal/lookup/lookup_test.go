package lookup_test

import (
	"context"
	"errors"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"example.com/tandem/kit/call"
	"example.com/tandem/kit/internal/lookup"
	"example.com/tandem/kit/kittest"
)

var (
	dns *kittest.DNS
	// dnsSilent makes queries get no response. They time out by the fake clock of
	// synctest, which does not apply to real connections.
	dnsSilent atomic.Bool
)

func TestMain(m *testing.M) {
	dns = kittest.UseDNS()
	dial := net.DefaultResolver.Dial
	net.DefaultResolver.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
		if dnsSilent.Load() {
			client, _ := net.Pipe() // nothing reads from the other end
			return client, nil
		}
		return dial(ctx, network, addr)
	}
	// The first lookup creates state of the resolver, which must not belong to the
	// synctest bubble of a test.
	_, _ = net.DefaultResolver.LookupHost(context.Background(), "first.lookup.test.")
	goleak.VerifyTestMain(m, goleak.IgnoreCurrent()) // the DNS server is not stopped
}

// changes records the addresses that a Name reports as changed.
type changes struct {
	mu  sync.Mutex
	all [][]string
}

func (c *changes) add(addrs []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.all = append(c.all, addrs)
}

func (c *changes) get() [][]string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.all)
}

// inBubble runs a test in a synctest bubble. Its fake clock stops during lookups,
// which use real connections.
func inBubble(t *testing.T, name string, test func(t *testing.T, n *lookup.Name, changed *changes)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		changed := &changes{}
		test(t, lookup.New(name, "80", changed.add), changed)
		time.Sleep(time.Minute) // a scheduled lookup ends before the bubble does
	})
}

// callEvery calls Addresses every interval until duration has passed, and returns
// the last result.
func callEvery(t *testing.T, interval, duration time.Duration, n *lookup.Name) (addrs []string, err error) {
	t.Helper()
	for start := time.Now(); time.Since(start) < duration; time.Sleep(interval) {
		addrs, err = n.Addresses(t.Context())
	}
	return addrs, err
}

// Addresses waits for the first lookup, Known does not.
func TestAddresses_WaitForTheFirstLookup(t *testing.T) {
	dns.Set("first.test.", "127.0.0.2", "127.0.0.1")
	inBubble(t, "first.test.", func(t *testing.T, n *lookup.Name, changed *changes) {
		addrs, err := n.Known()
		assert.Empty(t, addrs)
		assert.EqualError(t, err, "lookup first.test.: no response yet")

		want := []string{"127.0.0.1:80", "127.0.0.2:80"}
		addrs, err = n.Addresses(t.Context())
		require.NoError(t, err)
		assert.Equal(t, want, addrs)
		assert.Equal(t, [][]string{want}, changed.get())
	})
}

// Callers that wait for a name that does not exist share its lookups, of which there
// is one about every 100 ms, with jitter.
func TestAddresses_ShareLookupsOfMissingName(t *testing.T) {
	before := dns.Queries("missing.test.")
	inBubble(t, "missing.test.", func(t *testing.T, n *lookup.Name, changed *changes) {
		const callers, seconds = 100, 10
		var calls sync.WaitGroup
		var returned atomic.Int64
		for range callers {
			calls.Go(func() {
				for start := time.Now(); time.Since(start) < seconds*time.Second; returned.Add(1) {
					_, err := n.Addresses(t.Context())
					assert.Equal(t, call.DNS, call.ClassOf(err))
					assert.True(t, lookup.IsNotFound(err))
				}
			})
		}
		calls.Wait()
		assert.InDelta(t, 10*seconds, dns.Queries("missing.test.")-before, 3*seconds)
		assert.Greater(t, int(returned.Load()), callers*5*seconds, "each lookup must end the wait of all callers")
		assert.Empty(t, changed.get())
	})
}

// 100 concurrent first calls make one lookup.
func TestAddresses_ShareTheFirstLookup(t *testing.T) {
	dns.Set("shared.test.", "127.0.0.1")
	before := dns.Queries("shared.test.")
	inBubble(t, "shared.test.", func(t *testing.T, n *lookup.Name, _ *changes) {
		var calls sync.WaitGroup
		for range 100 {
			calls.Go(func() {
				_, err := n.Addresses(t.Context())
				assert.NoError(t, err)
			})
		}
		calls.Wait()
		assert.Equal(t, 1, dns.Queries("shared.test.")-before)
	})
}

// Known addresses are looked up again about every 10 s, in the background.
func TestAddresses_AreRefreshed(t *testing.T) {
	dns.Set("refreshed.test.", "127.0.0.1")
	before := dns.Queries("refreshed.test.")
	inBubble(t, "refreshed.test.", func(t *testing.T, n *lookup.Name, changed *changes) {
		_, err := callEvery(t, 10*time.Millisecond, 100*time.Second, n)
		require.NoError(t, err)
		assert.InDelta(t, 10, dns.Queries("refreshed.test.")-before, 4)
		assert.Len(t, changed.get(), 1, "another order of the addresses is not a change")

		dns.Set("refreshed.test.", "127.0.0.1", "127.0.0.2")
		_, err = callEvery(t, 10*time.Millisecond, 16*time.Second, n)
		require.NoError(t, err)
		assert.Equal(t, [][]string{{"127.0.0.1:80"}, {"127.0.0.1:80", "127.0.0.2:80"}}, changed.get())
	})
}

// After Refresh the next call starts a lookup, at most about once a second.
func TestRefresh_StartsLookupSoon(t *testing.T) {
	dns.Set("refresh.test.", "127.0.0.1")
	inBubble(t, "refresh.test.", func(t *testing.T, n *lookup.Name, changed *changes) {
		_, err := n.Addresses(t.Context())
		require.NoError(t, err)
		dns.Set("refresh.test.", "127.0.0.2")
		n.Refresh()
		addrs, err := n.Addresses(t.Context())
		require.NoError(t, err)
		assert.Equal(t, []string{"127.0.0.1:80"}, addrs, "the call does not wait for the lookup")
		time.Sleep(1500 * time.Millisecond)
		_, err = n.Addresses(t.Context())
		require.NoError(t, err)
		require.NoError(t, n.Lookup(t.Context())) // joins the lookup
		assert.Equal(t, [][]string{{"127.0.0.1:80"}, {"127.0.0.2:80"}}, changed.get())

		before := dns.Queries("refresh.test.")
		for start := time.Now(); time.Since(start) < 20*time.Second; time.Sleep(time.Millisecond) {
			n.Refresh()
			_, err = n.Addresses(t.Context())
			require.NoError(t, err)
		}
		assert.InDelta(t, 20, dns.Queries("refresh.test.")-before, 8)
	})
}

// While DNS fails, the addresses remain in use and no call waits.
func TestAddresses_KeptWhileDNSFails(t *testing.T) {
	for name, breakDNS := range map[string]func(bool){
		"SERVFAIL":    dns.Break,
		"no response": dnsSilent.Store,
	} {
		t.Run(name, func(t *testing.T) {
			dns.Set("failing.test.", "127.0.0.1")
			inBubble(t, "failing.test.", func(t *testing.T, n *lookup.Name, changed *changes) {
				_, err := n.Addresses(t.Context())
				require.NoError(t, err)
				dns.Set("failing.test.", "127.0.0.2") // seen when DNS works again

				breakDNS(true)
				defer breakDNS(false)
				time.Sleep(time.Minute)
				for range 5 {
					start := time.Now()
					addrs, err := n.Addresses(t.Context())
					require.NoError(t, err)
					assert.Equal(t, []string{"127.0.0.1:80"}, addrs)
					assert.Zero(t, time.Since(start))
				}
				_ = n.Lookup(t.Context()) // Known returns the error, too
				addrs, err := n.Known()
				assert.Equal(t, call.DNS, call.ClassOf(err), "Known returns the error with the addresses")
				assert.Equal(t, []string{"127.0.0.1:80"}, addrs)
				assert.Len(t, changed.get(), 1)

				breakDNS(false)
				require.NoError(t, n.Lookup(t.Context()))
				addrs, err = n.Known()
				require.NoError(t, err)
				assert.Equal(t, []string{"127.0.0.2:80"}, addrs)
			})
		})
	}
}

// A name that no longer exists keeps its addresses for 5 s: a DNS server that has
// just started may not know it yet. New addresses are used as soon as DNS returns
// them.
func TestAddresses_DroppedWhenNameIsGone(t *testing.T) {
	dns.Set("gone.test.", "127.0.0.1")
	inBubble(t, "gone.test.", func(t *testing.T, n *lookup.Name, changed *changes) {
		_, err := n.Addresses(t.Context())
		require.NoError(t, err)
		dns.Set("gone.test.")
		time.Sleep(2 * time.Second)
		require.True(t, lookup.IsNotFound(n.Lookup(t.Context())))
		notFound := time.Now()

		for time.Since(notFound) < 3500*time.Millisecond { // the next lookup may take 1.5 s more
			require.Error(t, n.Lookup(t.Context()))
			addrs, err := n.Addresses(t.Context())
			require.NoError(t, err)
			require.Len(t, addrs, 1)
		}
		addrs, err := callEvery(t, 10*time.Millisecond, 5*time.Second, n)
		assert.Empty(t, addrs)
		assert.True(t, lookup.IsNotFound(err))
		assert.Equal(t, [][]string{{"127.0.0.1:80"}, nil}, changed.get())

		dns.Set("gone.test.", "127.0.0.2")
		start := time.Now()
		addrs, err = n.Addresses(t.Context())
		require.NoError(t, err)
		assert.Equal(t, []string{"127.0.0.2:80"}, addrs)
		assert.Less(t, time.Since(start), time.Second)
	})
}

// The 5 s begin with the first of consecutive lookups that do not find the name. An
// address or a failure of DNS in between ends the sequence.
func TestAddresses_KeptIfNotFoundIsBrief(t *testing.T) {
	for name, between := range map[string]func(bool){
		"address":  func(bool) { dns.Set("flapping.test.", "127.0.0.1") },
		"SERVFAIL": dns.Break,
	} {
		t.Run(name, func(t *testing.T) {
			dns.Set("flapping.test.", "127.0.0.1")
			defer dns.Break(false)
			inBubble(t, "flapping.test.", func(t *testing.T, n *lookup.Name, changed *changes) {
				require.NoError(t, n.Lookup(t.Context()))
				for range 3 {
					dns.Set("flapping.test.")
					require.True(t, lookup.IsNotFound(n.Lookup(t.Context())))
					between(true)
					require.False(t, lookup.IsNotFound(n.Lookup(t.Context())))
					dns.Break(false)
					time.Sleep(6 * time.Second)
				}
				assert.Len(t, changed.get(), 1)
			})
		})
	}
}

// If DNS does not respond, a call without a nearer deadline fails after 3 s.
func TestAddresses_TimeOutWithoutDNS(t *testing.T) {
	dnsSilent.Store(true)
	defer dnsSilent.Store(false)
	inBubble(t, "silent.test.", func(t *testing.T, n *lookup.Name, _ *changes) {
		start := time.Now()
		_, err := n.Addresses(t.Context())
		assert.Equal(t, call.DNS, call.ClassOf(err))
		assert.False(t, lookup.IsNotFound(err))
		assert.Equal(t, 3*time.Second, time.Since(start))
	})
}

// A deadline that passes during the lookup is a failure of DNS; a canceled call is not.
// The error wraps the cause of the context.
func TestAddresses_ClassOfEndedContext(t *testing.T) {
	dnsSilent.Store(true)
	defer dnsSilent.Store(false)
	errCause := errors.New("cause")
	for name, tt := range map[string]struct {
		context func(context.Context) (context.Context, context.CancelFunc)
		class   call.Class
	}{
		"deadline": {
			context: func(ctx context.Context) (context.Context, context.CancelFunc) {
				return context.WithTimeout(ctx, 10*time.Millisecond)
			},
			class: call.DNS,
		},
		"canceled": {
			context: func(ctx context.Context) (context.Context, context.CancelFunc) {
				ctx, cancel := context.WithCancel(ctx)
				cancel()
				return ctx, cancel
			},
			class: call.Canceled,
		},
		"canceled with a cause": {
			context: func(ctx context.Context) (context.Context, context.CancelFunc) {
				ctx, cancel := context.WithCancelCause(ctx)
				cancel(errCause)
				return ctx, func() { cancel(nil) }
			},
			class: call.Canceled,
		},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, "silent.test.", func(t *testing.T, n *lookup.Name, _ *changes) {
				ctx, cancel := tt.context(t.Context())
				defer cancel()
				_, err := n.Addresses(ctx)
				assert.ErrorContains(t, err, "lookup silent.test.: no response: ")
				assert.ErrorIs(t, err, context.Cause(ctx))
				assert.Equal(t, tt.class, call.ClassOf(err))
				assert.ErrorIs(t, n.Lookup(ctx), ctx.Err())
			})
		})
	}
}

// An address that DNS returns twice is one endpoint.
func TestLookup_DropsDuplicates(t *testing.T) {
	dns.Set("twice.test.", "127.0.0.1", "127.0.0.2", "127.0.0.1")
	inBubble(t, "twice.test.", func(t *testing.T, n *lookup.Name, _ *changes) {
		require.NoError(t, n.Lookup(t.Context()))
		addrs, err := n.Known()
		require.NoError(t, err)
		assert.Equal(t, []string{"127.0.0.1:80", "127.0.0.2:80"}, addrs)
	})
}

// An IP address needs no DNS.
func TestLookup_AcceptsIPAddresses(t *testing.T) {
	for host, want := range map[string]string{"127.0.0.1": "127.0.0.1:80", "::1": "[::1]:80"} {
		n := lookup.New(host, "80", nil)
		addrs, err := n.Addresses(t.Context())
		require.NoError(t, err)
		assert.Equal(t, []string{want}, addrs)
	}
}

func TestJitter_IsHalfToOneAndAHalf(t *testing.T) {
	shortest, longest := time.Hour, time.Duration(0)
	for range 1000 {
		d := lookup.Jitter(time.Second)
		shortest, longest = min(shortest, d), max(longest, d)
	}
	assert.InDelta(t, 500*time.Millisecond, shortest, float64(50*time.Millisecond))
	assert.InDelta(t, 1500*time.Millisecond, longest, float64(50*time.Millisecond))
}
