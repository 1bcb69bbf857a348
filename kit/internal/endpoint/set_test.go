package endpoint_test

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"example.com/tandem/kit/internal/endpoint"
)

// noTrial is passed to Pick as the address to avoid. No endpoint has this address,
// but Pick makes no trials for retries.
const noTrial = "none"

// pods is a Set with the endpoints a, b, c, …
type pods struct {
	*endpoint.Set[string]
	t     *testing.T
	addrs []string
}

func newPods(t *testing.T, n int) pods {
	t.Helper()
	p := pods{endpoint.NewSet(func(addr string) string { return addr }), t, addresses(n)}
	p.Update(p.addrs)
	return p
}

func addresses(n int) []string {
	addrs := make([]string, n)
	for i := range addrs {
		addrs[i] = string(rune('a' + i))
	}
	return addrs
}

func (p pods) pick(avoid string) endpoint.Attempt {
	p.t.Helper()
	addr, a, ok := p.Pick(avoid, false)
	require.True(p.t, ok)
	require.Equal(p.t, addr, a.Addr())
	return a
}

// begin starts an attempt at the endpoint addr, which must be in use.
func (p pods) begin(addr string) endpoint.Attempt {
	p.t.Helper()
	for range 1000 {
		a := p.pick(noTrial)
		if a.Addr() == addr {
			return a
		}
		a.End(endpoint.Ignored)
	}
	require.FailNow(p.t, "endpoint is not in use", "%s; in use: %s", addr, p.inUse())
	return endpoint.Attempt{}
}

// end makes one attempt at the endpoint addr for each outcome.
func (p pods) end(addr string, outcomes ...endpoint.Outcome) {
	p.t.Helper()
	for _, o := range outcomes {
		p.begin(addr).End(o)
	}
}

// rounds makes n times as many attempts as there are endpoints, one after another.
// They end with the outcome of their endpoint in outcomes, or else with a response.
// It returns the number of attempts by endpoint.
func (p pods) rounds(n int, outcomes map[string]endpoint.Outcome) map[string]int {
	p.t.Helper()
	attempts := map[string]int{}
	for range n * len(p.addrs) {
		a := p.pick("")
		attempts[a.Addr()]++
		o, ok := outcomes[a.Addr()]
		if !ok {
			o = endpoint.Responded
		}
		a.End(o)
	}
	return attempts
}

// inUse returns the endpoints that get attempts, as one string. It does not change
// the Set's state.
func (p pods) inUse() string {
	p.t.Helper()
	found := map[string]bool{}
	for range 2 * len(p.addrs) {
		a := p.pick(noTrial)
		found[a.Addr()] = true
		a.End(endpoint.Ignored)
	}
	out := ""
	for _, addr := range p.addrs {
		if found[addr] {
			out += addr
		}
	}
	return out
}

// repeat returns n copies of the outcomes.
func repeat(n int, outcomes ...endpoint.Outcome) []endpoint.Outcome {
	return slices.Repeat(outcomes, n)
}

// each returns a map from each address to the outcome.
func each(o endpoint.Outcome, addrs ...string) map[string]endpoint.Outcome {
	outcomes := map[string]endpoint.Outcome{}
	for _, addr := range addrs {
		outcomes[addr] = o
	}
	return outcomes
}

func TestPick_EmptySet(t *testing.T) {
	s := endpoint.NewSet(func(addr string) string { return addr })
	_, a, ok := s.Pick("", false)
	assert.False(t, ok)
	assert.Empty(t, a.Addr())
	a.End(endpoint.Failed) // does nothing
	s.Update([]string{"a"})
	s.Update(nil)
	_, _, ok = s.Pick("", false)
	assert.False(t, ok)
}

func TestPick_SpreadsEvenly(t *testing.T) {
	p := newPods(t, 3)
	assert.Equal(t, map[string]int{"a": 100, "b": 100, "c": 100}, p.rounds(100, nil))
}

// Concurrent attempts are spread evenly, too.
func TestPick_SpreadsConcurrentAttempts(t *testing.T) {
	p := newPods(t, 3)
	attempts := map[string]int{}
	for range 300 {
		attempts[p.pick("").Addr()]++ // never ends
	}
	for addr, n := range attempts {
		assert.InDelta(t, 100, n, 15, addr)
	}
}

// An endpoint that does not respond gets few attempts even before the first of
// them times out.
func TestPick_AvoidsBusyEndpoint(t *testing.T) {
	p := newPods(t, 3)
	pending := 0
	for range 1000 {
		if a := p.pick(""); a.Addr() == "a" {
			pending++
		} else {
			a.End(endpoint.Responded)
		}
	}
	assert.LessOrEqual(t, pending, 2, "an equal share would be 333")
}

// An endpoint is busy if it has more than 2n+1 attempts in flight while another has n.
// Streams do not count.
func TestPick_BusyIsTwiceAsMany(t *testing.T) {
	for _, tt := range []struct {
		pending [2]int // attempts in flight at a and b
		streams bool   // whether these are streams
		want    map[string]int
	}{
		{
			pending: [2]int{0, 1},
			want:    map[string]int{"a": 10, "b": 10},
		},
		{
			pending: [2]int{0, 2},
			want:    map[string]int{"a": 20},
		},
		{
			pending: [2]int{7, 15},
			want:    map[string]int{"a": 10, "b": 10},
		},
		{
			pending: [2]int{7, 16},
			want:    map[string]int{"a": 20},
		},
		{
			pending: [2]int{0, 16},
			streams: true,
			want:    map[string]int{"a": 10, "b": 10},
		},
	} {
		p := newPods(t, 2)
		for i, n := range tt.pending {
			p.Update(p.addrs[i:i+1], p.addrs...)
			for range n {
				_, _, ok := p.Pick("", tt.streams)
				require.True(t, ok)
			}
		}
		p.Update(p.addrs)
		assert.Equal(t, tt.want, p.rounds(10, nil), "%v", tt.pending)
	}
}

// A retry avoids the endpoint of the failed attempt, if there is another one.
func TestPick_AvoidsFailedEndpoint(t *testing.T) {
	p := newPods(t, 3)
	for range 100 {
		p.begin("a").End(endpoint.Responded)
		assert.NotEqual(t, "a", p.pick("a").Addr(), "although the others are busier")
	}
	p.Update([]string{"a"})
	assert.Equal(t, "a", p.pick("a").Addr(), "the only endpoint")
}

// An endpoint that fails markedly more often than the others is ejected.
func TestEnd_EjectsOutlier(t *testing.T) {
	const responded, failed, timedOut = endpoint.Responded, endpoint.Failed, endpoint.TimedOut
	for name, tt := range map[string]struct {
		outcomes []endpoint.Outcome // of endpoint a, while the others respond
		ejected  bool
	}{
		"four failures in a row": {outcomes: repeat(4, failed)},
		"five failures in a row": {outcomes: repeat(5, failed), ejected: true},
		"one failure in ten":     {outcomes: repeat(100, append(repeat(1, failed), repeat(9, responded)...)...)},
		"one failure in three":   {outcomes: repeat(20, failed, responded, responded), ejected: true},
		"one timeout":            {outcomes: repeat(1, timedOut)},
		"two timeouts":           {outcomes: repeat(2, timedOut), ejected: true},
		"no connection":          {outcomes: repeat(1, endpoint.Unreachable), ejected: true},
		"ignored outcomes":       {outcomes: repeat(1000, endpoint.Ignored)},
		"timeouts below 100 ms":  {outcomes: repeat(1000, endpoint.TimedOutAfter(99*time.Millisecond))},
		"timeouts of 100 ms":     {outcomes: repeat(2, endpoint.TimedOutAfter(100*time.Millisecond)), ejected: true},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPods(t, 3)
			for _, o := range tt.outcomes {
				if p.inUse() != "abc" {
					break
				}
				p.end("a", o)
			}
			assert.Equal(t, map[bool]string{false: "abc", true: "bc"}[tt.ejected], p.inUse())
		})
	}
}

// An endpoint that responds to other attempts while one attempt times out is not
// ejected: it is slow, but it does not hang.
func TestEnd_TimeoutBesideResponses(t *testing.T) {
	p := newPods(t, 3)
	for range 100 {
		slow := p.begin("a")
		p.rounds(10, nil)
		slow.End(endpoint.TimedOut)
		require.Equal(t, "abc", p.inUse())
	}
}

// If all endpoints fail alike, each keeps its share of the attempts.
func TestEnd_EjectsNoneIfAllFail(t *testing.T) {
	for _, o := range []endpoint.Outcome{endpoint.Failed, endpoint.TimedOut, endpoint.Unreachable} {
		for _, n := range []int{1, 2, 3, 10} {
			synctest.Test(t, func(t *testing.T) {
				p := newPods(t, n)
				all := each(o, p.addrs...)
				p.rounds(100, all)
				for addr, attempts := range p.rounds(100, all) {
					assert.Equal(t, 100, attempts, "outcome %d, %s of %d endpoints", o, addr, n)
				}
			})
		}
	}
}

// No endpoint is ejected if all fail one attempt in three.
func TestEnd_EjectsNoneIfAllFailPartly(t *testing.T) {
	p := newPods(t, 3)
	for range 100 {
		p.rounds(1, each(endpoint.Failed, p.addrs...))
		require.Equal(t, "abc", p.inUse())
		p.rounds(2, nil)
	}
}

// At most half of the endpoints are ejected for failures: the others must carry the
// load. Endpoints that do not respond at all are all ejected, except the last one.
func TestEnd_KeepsEnoughInUse(t *testing.T) {
	for _, tt := range []struct {
		outcome endpoint.Outcome
		pods    int
		failing int
		inUse   int
	}{
		{outcome: endpoint.Failed, pods: 1, failing: 1, inUse: 1},
		{outcome: endpoint.Failed, pods: 2, failing: 1, inUse: 1},
		{outcome: endpoint.Failed, pods: 3, failing: 1, inUse: 2},
		{outcome: endpoint.Failed, pods: 3, failing: 2, inUse: 2},
		{outcome: endpoint.Failed, pods: 4, failing: 2, inUse: 2},
		{outcome: endpoint.Failed, pods: 4, failing: 3, inUse: 2},
		{outcome: endpoint.Failed, pods: 5, failing: 3, inUse: 3},
		{outcome: endpoint.TimedOut, pods: 1, failing: 1, inUse: 1},
		{outcome: endpoint.TimedOut, pods: 2, failing: 1, inUse: 1},
		{outcome: endpoint.TimedOut, pods: 3, failing: 2, inUse: 1},
		{outcome: endpoint.TimedOut, pods: 5, failing: 4, inUse: 1},
		{outcome: endpoint.Unreachable, pods: 1, failing: 1, inUse: 1},
		{outcome: endpoint.Unreachable, pods: 5, failing: 4, inUse: 1},
	} {
		synctest.Test(t, func(t *testing.T) {
			p := newPods(t, tt.pods)
			p.rounds(30, each(tt.outcome, p.addrs[:tt.failing]...))
			assert.Len(t, p.inUse(), tt.inUse, "%+v", tt)
		})
	}
}

// An endpoint that was ejected for failures is readmitted when the others stop
// responding and too few remain in use.
func TestEnd_ReadmitsIfTooFewRemain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPods(t, 4)
		p.end("a", repeat(5, endpoint.Failed)...)
		require.Equal(t, "bcd", p.inUse())
		p.end("b", endpoint.Unreachable)
		require.Equal(t, "cd", p.inUse())
		p.end("c", endpoint.Unreachable)
		assert.Equal(t, "ad", p.inUse())
	})
}

// The failure rate of an ejected endpoint is not part of the mean with which another
// one is compared.
func TestEnd_ComparesWithEndpointsInUse(t *testing.T) {
	p := newPods(t, 4)
	p.end("a", repeat(5, endpoint.Failed)...)
	p.end("b", repeat(5, endpoint.Failed)...)
	assert.Equal(t, "cd", p.inUse())
}

// An overload may affect one endpoint first. The endpoint is readmitted when the
// others fail as often, and none of them is ejected.
func TestEnd_ReadmitsIfOthersFailAlike(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPods(t, 3)
		p.end("a", repeat(5, endpoint.Failed)...)
		require.Equal(t, "bc", p.inUse())
		for range 2 {
			var inFlight []endpoint.Attempt
			for range 100 {
				inFlight = append(inFlight, p.pick(""))
			}
			for _, a := range inFlight {
				a.End(endpoint.Failed)
			}
		}
		assert.Equal(t, "abc", p.inUse())
		assert.Equal(t, map[string]int{"a": 50, "b": 50, "c": 50}, p.rounds(50, each(endpoint.Failed, p.addrs...)))
	})
}

// When endpoints disappear, ejected ones are readmitted if too few remain in use.
func TestUpdate_ReadmitsIfTooFewRemain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPods(t, 4)
		p.rounds(10, each(endpoint.Failed, "a", "b"))
		require.Equal(t, "cd", p.inUse())
		p.Update([]string{"a", "b", "c"})
		assert.Equal(t, "ac", p.inUse(), "two of three must be in use")
		p.Update([]string{"b"})
		assert.Equal(t, "b", p.inUse(), "the only endpoint")
	})
}

// An ejected endpoint remains ejected as long as its address is known.
func TestUpdate_KeepsRatesOfKnownAddresses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPods(t, 3)
		p.end("a", endpoint.Unreachable)
		require.Equal(t, "bc", p.inUse())
		p.Update([]string{"a", "b", "c"})
		assert.Equal(t, "bc", p.inUse())
		p.Update([]string{"b", "c"}, "a")
		p.Update([]string{"a", "b", "c"})
		assert.Equal(t, "bc", p.inUse(), "a was known while it was not ready")
		p.Update([]string{"b", "c"})
		p.Update([]string{"a", "b", "c"})
		assert.Equal(t, "abc", p.inUse(), "a was unknown in between")
	})
}

// Attempts that fail while no endpoint is ready eject none: there is no endpoint to
// compare with. (The connections to all pods may be lost at once.)
func TestUpdate_WithoutReadyEndpoints(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPods(t, 2)
		var inFlight []endpoint.Attempt
		for range 40 {
			inFlight = append(inFlight, p.pick(""))
		}
		p.Update(nil, p.addrs...)
		for _, a := range inFlight {
			a.End(endpoint.Failed)
		}
		p.Update([]string{"a"}, p.addrs...)
		p.Update(p.addrs)
		assert.Equal(t, "ab", p.inUse())
	})
}

// A trial is one attempt. If it succeeds, the endpoint is readmitted and its earlier
// failures no longer count.
func TestTrial_SuccessReadmits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPods(t, 3)
		p.end("a", repeat(5, endpoint.Failed)...)
		time.Sleep(10*time.Second - time.Nanosecond)
		assert.Zero(t, p.rounds(10, nil)["a"], "no trial is due")

		time.Sleep(time.Nanosecond)
		assert.Equal(t, 1, p.rounds(10, each(endpoint.Failed, "a"))["a"], "one trial, which fails")
		time.Sleep(10*time.Second - time.Nanosecond)
		assert.Zero(t, p.rounds(10, nil)["a"], "no trial is due")

		time.Sleep(time.Nanosecond)
		assert.Zero(t, p.retries("b")["a"], "a retry is never a trial")
		trial := p.pick("")
		assert.Equal(t, "a", trial.Addr())
		assert.Zero(t, p.rounds(10, nil)["a"], "one trial at a time")
		trial.End(endpoint.Responded)
		assert.Equal(t, map[string]int{"a": 10, "b": 10, "c": 10}, p.rounds(10, nil))
		p.end("a", repeat(4, endpoint.Failed)...)
		assert.Equal(t, "abc", p.inUse())
	})
}

// retries makes ten retries of attempts that failed at avoid, and returns the number
// of attempts by endpoint.
func (p pods) retries(avoid string) map[string]int {
	attempts := map[string]int{}
	for range 10 {
		a := p.pick(avoid)
		attempts[a.Addr()]++
		a.End(endpoint.Ignored)
	}
	return attempts
}

// Failed trials follow one another at these times.
func TestTrial_Timing(t *testing.T) {
	for name, tt := range map[string]struct {
		ejection []endpoint.Outcome // outcomes for which the endpoint is ejected
		trial    endpoint.Outcome
		after    []int // seconds between the trials
	}{
		"refused": {
			ejection: repeat(1, endpoint.Unreachable),
			trial:    endpoint.Unreachable,
			after:    []int{1, 2, 4, 8, 10, 10},
		},
		"failing": {
			ejection: repeat(5, endpoint.Failed),
			trial:    endpoint.Failed,
			after:    []int{10, 10, 10},
		},
		"hung": {
			ejection: repeat(2, endpoint.TimedOut),
			trial:    endpoint.TimedOut,
			after:    []int{10, 10, 10},
		},
		"refused, then hung": {
			ejection: repeat(1, endpoint.Unreachable),
			trial:    endpoint.TimedOut,
			after:    []int{1, 10, 10},
		},
		"ignored outcome": {
			ejection: repeat(1, endpoint.Unreachable),
			trial:    endpoint.Ignored,
			after:    []int{1, 2, 4, 8, 10, 10},
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPods(t, 3)
				p.end("a", tt.ejection...)
				require.Equal(t, "bc", p.inUse())
				for _, seconds := range tt.after {
					time.Sleep(time.Duration(seconds)*time.Second - time.Nanosecond)
					require.Zero(t, p.rounds(3, nil)["a"], "trial before %d s have passed", seconds)
					time.Sleep(time.Nanosecond)
					require.Equal(t, 1, p.rounds(3, each(tt.trial, "a"))["a"], "no trial after %d s", seconds)
				}
			})
		})
	}
}

// A trial that does not end does not prevent the next one: a stream may never get a
// message.
func TestTrial_UnendedDoesNotDelayOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPods(t, 3)
		p.end("a", repeat(5, endpoint.Failed)...)
		for range 3 {
			time.Sleep(10 * time.Second)
			addr, _, ok := p.Pick("", true)
			require.True(t, ok)
			assert.Equal(t, "a", addr)
			assert.Zero(t, p.rounds(10, nil)["a"])
		}
		time.Sleep(10 * time.Second)
		p.rounds(1, nil)
		assert.Equal(t, "abc", p.inUse())
	})
}

// Each ejected endpoint gets its own trial.
func TestTrial_OfEveryEjectedEndpoint(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPods(t, 4)
		p.rounds(10, each(endpoint.Failed, "a", "b"))
		require.Equal(t, "cd", p.inUse())
		time.Sleep(10 * time.Second)
		attempts := p.rounds(2, each(endpoint.Failed, "a", "b"))
		assert.Equal(t, 1, attempts["a"])
		assert.Equal(t, 1, attempts["b"])
	})
}

// Outcomes of attempts that began before the ejection are ignored, both while the
// endpoint is ejected and after it was readmitted.
func TestEnd_IgnoresAttemptsBeforeEjection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPods(t, 3)
		var before []endpoint.Attempt
		for range 60 {
			_, a, _ := p.Pick("", true) // streams do not make the endpoint busy
			before = append(before, a)
		}
		before = slices.DeleteFunc(before, func(a endpoint.Attempt) bool { return a.Addr() != "a" })
		require.Len(t, before, 20)
		for _, a := range before[:5] {
			a.End(endpoint.Failed)
		}
		require.Equal(t, "bc", p.inUse())
		for _, a := range before[5:8] {
			a.End(endpoint.Responded)
		}
		assert.Equal(t, "bc", p.inUse(), "a response readmitted a")
		before[8].End(endpoint.Unreachable)

		time.Sleep(10 * time.Second)
		p.rounds(1, nil) // makes the trial; its time did not change when the connection was refused
		require.Equal(t, "abc", p.inUse())
		for _, a := range before[9:] {
			a.End(endpoint.Failed)
		}
		assert.Equal(t, "abc", p.inUse(), "failures ejected a again")
	})
}

// The outcome of a trial of an earlier ejection is ignored, too.
func TestTrial_OfEarlierEjectionIsIgnored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPods(t, 3)
		p.end("a", endpoint.Unreachable)
		time.Sleep(time.Second)
		old := p.pick("")
		require.Equal(t, "a", old.Addr())
		time.Sleep(2 * time.Second)
		p.rounds(1, nil) // the second trial readmits
		p.end("a", endpoint.Unreachable)
		require.Equal(t, "bc", p.inUse())
		old.End(endpoint.Responded)
		assert.Equal(t, "bc", p.inUse())
	})
}

func TestPick_AllocatesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := manyPods(3000)
		assert.Zero(t, testing.AllocsPerRun(1000, func() { pickOnce(s) }))
	})
}

// Pick takes about as long with thousands of endpoints, of which a third is ejected,
// as with three.
func TestPick_CostIsIndependentOfN(t *testing.T) {
	const picks, runs = 2000, 30
	few, many := manyPods(3), manyPods(3000)
	cost := func(s *endpoint.Set[string]) time.Duration {
		start := time.Now()
		for range picks {
			pickOnce(s)
		}
		return time.Since(start)
	}
	minFew, minMany := time.Hour, time.Hour
	for range runs { // the minimum: a mean would include other load
		minFew, minMany = min(minFew, cost(few)), min(minMany, cost(many))
	}
	assert.Less(t, minMany, 3*minFew, "%d picks", picks)
}

// manyPods returns a Set with n endpoints. A third of them is ejected, and no trial is
// due for 10 s.
func manyPods(n int) *endpoint.Set[string] {
	addrs := make([]string, n)
	for i := range addrs {
		addrs[i] = fmt.Sprintf("10.0.%03d.%03d:9090", i/250, i%250)
	}
	s := endpoint.NewSet(func(addr string) string { return addr })
	s.Update(addrs)
	var attempts []endpoint.Attempt
	for range 2 * n {
		_, a, _ := s.Pick("", false)
		attempts = append(attempts, a)
	}
	hung := addrs[:n/3]
	for _, a := range attempts {
		if _, found := slices.BinarySearch(hung, a.Addr()); found {
			a.End(endpoint.TimedOut)
		} else {
			a.End(endpoint.Responded)
		}
	}
	return s
}

func pickOnce(s *endpoint.Set[string]) {
	_, a, _ := s.Pick("", false)
	a.End(endpoint.Responded)
}

func BenchmarkPick(b *testing.B) {
	for _, n := range []int{3, 300, 3000} {
		s := manyPods(n)
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				pickOnce(s)
			}
		})
		b.Run(fmt.Sprint(n, "/parallel"), func(b *testing.B) {
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					pickOnce(s)
				}
			})
		})
	}
}

// BenchmarkEnd_Failed measures a failure while all endpoints fail alike: End visits
// every endpoint.
func BenchmarkEnd_Failed(b *testing.B) {
	for _, n := range []int{3, 300, 3000} {
		s := manyPods(n)
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			for b.Loop() {
				_, a, _ := s.Pick("", false)
				a.End(endpoint.Failed)
			}
		})
	}
}

// An endpoint that hangs remains ejected while the only other one reconnects, and is
// readmitted when the other one cannot connect.
func TestExpect_KeepsEndpointsEjected(t *testing.T) {
	s := endpoint.NewSet(func(addr string) string { return addr })
	s.Update([]string{"hung", "healthy"})
	for range 20 {
		if addr, a, _ := s.Pick("", false); addr == "hung" {
			a.End(endpoint.TimedOut)
		} else {
			a.End(endpoint.Responded)
		}
	}
	s.Expect(1)
	s.Update([]string{"hung"}, "healthy")
	_, _, ok := s.Pick("", false)
	assert.False(t, ok, "the call must wait for the other endpoint")

	s.Expect(0)
	s.Update([]string{"hung"}, "healthy")
	addr, _, ok := s.Pick("", false)
	assert.True(t, ok)
	assert.Equal(t, "hung", addr, "the only endpoint that is ready")
}

// An ejected endpoint gets its trial while another one connects, which may never
// succeed.
func TestExpect_DoesNotDelayTrials(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPods(t, 2)
		p.end("a", endpoint.TimedOut, endpoint.TimedOut)
		p.Expect(1)
		p.Update([]string{"a"}, "a", "c")
		_, _, ok := p.Pick("", false)
		assert.False(t, ok)
		time.Sleep(11 * time.Second)
		addr, _, ok := p.Pick("", false)
		assert.True(t, ok)
		assert.Equal(t, "a", addr)
	})
}
