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
	// silent makes queries get no response. They time out by the fake clock, which
	// real connections do not.
	silent atomic.Bool
)

func TestMain(m *testing.M) {
	dns = kittest.UseDNS()
	dial := net.DefaultResolver.Dial
	net.DefaultResolver.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
		if silent.Load() {
			client, _ := net.Pipe() // without a reader
			return client, nil
		}
		return dial(ctx, network, addr)
	}
	// The resolver has state of its own, which no test's bubble may own.
	_, _ = net.DefaultResolver.LookupHost(context.Background(), "first.lookup.test.")
	goleak.VerifyTestMain(m, goleak.IgnoreCurrent()) // the DNS server stays
}

// changes notes what a Name reports as changed.
type changes struct {
	mu   sync.Mutex
	seen [][]string
}

func (c *changes) add(addrs []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seen = append(c.seen, addrs)
}

func (c *changes) all() [][]string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.seen)
}

// inBubble runs a test with a fake clock. It stands still during lookups, which
// are real.
func inBubble(t *testing.T, name string, test func(t *testing.T, n *lookup.Name, changed *changes)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		changed := &changes{}
		test(t, lookup.New(name, "80", changed.add), changed)
		time.Sleep(time.Minute) // a lookup may be due still
	})
}

// callEvery calls Addresses again and again for a while.
func callEvery(t *testing.T, pause, duration time.Duration, n *lookup.Name) (addrs []string, err error) {
	t.Helper()
	for start := time.Now(); time.Since(start) < duration; time.Sleep(pause) {
		addrs, err = n.Addresses(t.Context())
	}
	return addrs, err
}

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
		assert.Equal(t, [][]string{want}, changed.all())
	})
}

// Callers that wait for a name that does not exist share its lookups: one in
// 100 ms or so, by which the pause between them is jittered.
func TestAddresses_ShareLookupsOfMissingName(t *testing.T) {
	before := dns.Queries("missing.test.")
	inBubble(t, "missing.test.", func(t *testing.T, n *lookup.Name, changed *changes) {
		const callers, seconds = 100, 10
		var calls sync.WaitGroup
		var made atomic.Int64
		for range callers {
			calls.Go(func() {
				for start := time.Now(); time.Since(start) < seconds*time.Second; made.Add(1) {
					_, err := n.Addresses(t.Context())
					assert.Equal(t, call.DNS, call.ClassOf(err))
					assert.True(t, lookup.IsNotFound(err))
				}
			})
		}
		calls.Wait()
		assert.InDelta(t, 10*seconds, dns.Queries("missing.test.")-before, 3*seconds)
		assert.Greater(t, int(made.Load()), callers*5*seconds, "each lookup ends the wait of all")
		assert.Empty(t, changed.all())
	})
}

// The first 100 calls of a process make one lookup.
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

// Known addresses are looked up anew every 10 s or so, beside the calls.
func TestAddresses_AreRefreshed(t *testing.T) {
	dns.Set("refreshed.test.", "127.0.0.1")
	before := dns.Queries("refreshed.test.")
	inBubble(t, "refreshed.test.", func(t *testing.T, n *lookup.Name, changed *changes) {
		_, err := callEvery(t, 10*time.Millisecond, 100*time.Second, n)
		require.NoError(t, err)
		assert.InDelta(t, 10, dns.Queries("refreshed.test.")-before, 4)
		assert.Len(t, changed.all(), 1, "in random order they are the same")

		dns.Set("refreshed.test.", "127.0.0.1", "127.0.0.2")
		_, err = callEvery(t, 10*time.Millisecond, 16*time.Second, n)
		require.NoError(t, err)
		assert.Equal(t, [][]string{{"127.0.0.1:80"}, {"127.0.0.1:80", "127.0.0.2:80"}}, changed.all())
	})
}

// After a failure a call starts a lookup, at most once in a second or so.
func TestRefresh_StartsLookupSoon(t *testing.T) {
	dns.Set("refresh.test.", "127.0.0.1")
	inBubble(t, "refresh.test.", func(t *testing.T, n *lookup.Name, changed *changes) {
		_, err := n.Addresses(t.Context())
		require.NoError(t, err)
		dns.Set("refresh.test.", "127.0.0.2")
		n.Refresh()
		addrs, err := n.Addresses(t.Context())
		require.NoError(t, err)
		assert.Equal(t, []string{"127.0.0.1:80"}, addrs, "without waiting")
		time.Sleep(1500 * time.Millisecond)
		_, err = n.Addresses(t.Context())
		require.NoError(t, err)
		require.NoError(t, n.Lookup(t.Context())) // joins the lookup
		assert.Equal(t, [][]string{{"127.0.0.1:80"}, {"127.0.0.2:80"}}, changed.all())

		before := dns.Queries("refresh.test.")
		for start := time.Now(); time.Since(start) < 20*time.Second; time.Sleep(time.Millisecond) {
			n.Refresh()
			_, err = n.Addresses(t.Context())
			require.NoError(t, err)
		}
		assert.InDelta(t, 20, dns.Queries("refresh.test.")-before, 8)
	})
}

// While DNS is in trouble, the addresses remain in use and no call waits.
func TestAddresses_KeptWhileDNSFails(t *testing.T) {
	for name, trouble := range map[string]func(bool){
		"SERVFAIL": dns.Break,
		"silence":  silent.Store,
	} {
		t.Run(name, func(t *testing.T) {
			dns.Set("trouble.test.", "127.0.0.1")
			inBubble(t, "trouble.test.", func(t *testing.T, n *lookup.Name, changed *changes) {
				_, err := n.Addresses(t.Context())
				require.NoError(t, err)
				dns.Set("trouble.test.", "127.0.0.2") // which DNS does not say for now

				trouble(true)
				defer trouble(false)
				time.Sleep(time.Minute)
				for range 5 {
					start := time.Now()
					addrs, err := n.Addresses(t.Context())
					require.NoError(t, err)
					assert.Equal(t, []string{"127.0.0.1:80"}, addrs)
					assert.Zero(t, time.Since(start))
				}
				_ = n.Lookup(t.Context()) // its error is read below
				addrs, err := n.Known()
				assert.Equal(t, call.DNS, call.ClassOf(err), "the error of the last lookup stands beside them")
				assert.Equal(t, []string{"127.0.0.1:80"}, addrs)
				assert.Len(t, changed.all(), 1)

				trouble(false)
				require.NoError(t, n.Lookup(t.Context()))
				addrs, err = n.Known()
				require.NoError(t, err)
				assert.Equal(t, []string{"127.0.0.2:80"}, addrs)
			})
		})
	}
}

// A name that DNS denies keeps its addresses for 5 s: a DNS server that has just
// started may not know better. It has addresses again as soon as DNS says so.
func TestAddresses_DroppedWhenNameIsGone(t *testing.T) {
	dns.Set("gone.test.", "127.0.0.1")
	inBubble(t, "gone.test.", func(t *testing.T, n *lookup.Name, changed *changes) {
		_, err := n.Addresses(t.Context())
		require.NoError(t, err)
		dns.Set("gone.test.")
		time.Sleep(2 * time.Second)
		require.True(t, lookup.IsNotFound(n.Lookup(t.Context())))
		denied := time.Now()

		for time.Since(denied) < 3500*time.Millisecond { // a lookup takes another 1.5 s
			require.Error(t, n.Lookup(t.Context()))
			addrs, err := n.Addresses(t.Context())
			require.NoError(t, err)
			require.Len(t, addrs, 1)
		}
		addrs, err := callEvery(t, 10*time.Millisecond, 5*time.Second, n)
		assert.Empty(t, addrs)
		assert.True(t, lookup.IsNotFound(err))
		assert.Equal(t, [][]string{{"127.0.0.1:80"}, nil}, changed.all())

		dns.Set("gone.test.", "127.0.0.2")
		start := time.Now()
		addrs, err = n.Addresses(t.Context())
		require.NoError(t, err)
		assert.Equal(t, []string{"127.0.0.2:80"}, addrs)
		assert.Less(t, time.Since(start), time.Second)
	})
}

// Denials count from the first of an unbroken row: what DNS says between them,
// or that it is in trouble, ends the row.
func TestAddresses_KeptIfNotFoundIsBrief(t *testing.T) {
	for name, between := range map[string]func(bool){
		"address":  func(bool) { dns.Set("denied.test.", "127.0.0.1") },
		"SERVFAIL": dns.Break,
	} {
		t.Run(name, func(t *testing.T) {
			dns.Set("denied.test.", "127.0.0.1")
			defer dns.Break(false)
			inBubble(t, "denied.test.", func(t *testing.T, n *lookup.Name, changed *changes) {
				require.NoError(t, n.Lookup(t.Context()))
				for range 3 {
					dns.Set("denied.test.")
					require.True(t, lookup.IsNotFound(n.Lookup(t.Context())))
					between(true)
					require.False(t, lookup.IsNotFound(n.Lookup(t.Context())))
					dns.Break(false)
					time.Sleep(6 * time.Second)
				}
				assert.Len(t, changed.all(), 1)
			})
		})
	}
}

// A call with time enough learns that DNS gives no response after 3 s.
func TestAddresses_TimeOutWithoutDNS(t *testing.T) {
	silent.Store(true)
	defer silent.Store(false)
	inBubble(t, "silent.test.", func(t *testing.T, n *lookup.Name, _ *changes) {
		start := time.Now()
		_, err := n.Addresses(t.Context())
		assert.Equal(t, call.DNS, call.ClassOf(err))
		assert.False(t, lookup.IsNotFound(err))
		assert.Equal(t, 3*time.Second, time.Since(start))
	})
}

func TestAddresses_ClassOfEndedContext(t *testing.T) {
	silent.Store(true)
	defer silent.Store(false)
	errStop := errors.New("enough")
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
				cancel(errStop)
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

// A DNS server may list an address twice; it is one endpoint.
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
	least, longest := time.Hour, time.Duration(0)
	for range 1000 {
		d := lookup.Jitter(time.Second)
		least, longest = min(least, d), max(longest, d)
	}
	assert.InDelta(t, 500*time.Millisecond, least, float64(50*time.Millisecond))
	assert.InDelta(t, 1500*time.Millisecond, longest, float64(50*time.Millisecond))
}
