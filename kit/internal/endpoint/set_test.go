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

// noTrial is passed to Pick as an address to avoid. There is no such endpoint,
// but only attempts that avoid none become trials.
const noTrial = "none"

// pods is a Set whose endpoints are their addresses: a, b, c, …
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

// begin starts an attempt at this endpoint, which is in use.
func (p pods) begin(addr string) endpoint.Attempt {
	p.t.Helper()
	for range 1000 {
		a := p.pick(noTrial)
		if a.Addr() == addr {
			return a
		}
		a.End(endpoint.Ignored)
	}
	require.FailNow(p.t, "not in use", "%s: %s are", addr, p.inUse())
	return endpoint.Attempt{}
}

// end makes an attempt at this endpoint for each outcome.
func (p pods) end(addr string, outcomes ...endpoint.Outcome) {
	p.t.Helper()
	for _, o := range outcomes {
		p.begin(addr).End(o)
	}
}

// rounds makes n attempts for each endpoint, one after the other. They end as
// outcomes says, otherwise with a response. It returns how many each was given.
func (p pods) rounds(n int, outcomes map[string]endpoint.Outcome) map[string]int {
	p.t.Helper()
	given := map[string]int{}
	for range n * len(p.addrs) {
		a := p.pick("")
		given[a.Addr()]++
		o, ok := outcomes[a.Addr()]
		if !ok {
			o = endpoint.Responded
		}
		a.End(o)
	}
	return given
}

// inUse returns the endpoints that get attempts, as one string.
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

func repeat(n int, outcomes ...endpoint.Outcome) []endpoint.Outcome {
	return slices.Repeat(outcomes, n)
}

// each returns a map of these endpoints to an outcome.
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

// Attempts that overlap are spread evenly too.
func TestPick_SpreadsConcurrentAttempts(t *testing.T) {
	p := newPods(t, 3)
	given := map[string]int{}
	for range 300 {
		given[p.pick("").Addr()]++ // without End
	}
	for addr, n := range given {
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
	assert.LessOrEqual(t, pending, 2, "of 333 that would be its share")
}

// An endpoint is busy if it has more than twice the attempts in flight of another, plus
// one. Streams do not count: they may be silent for a long time.
func TestPick_BusyIsTwiceAsMany(t *testing.T) {
	for _, tt := range []struct {
		pending [2]int
		streams bool
		given   map[string]int
	}{
		{
			pending: [2]int{0, 1},
			given:   map[string]int{"a": 10, "b": 10},
		},
		{
			pending: [2]int{0, 2},
			given:   map[string]int{"a": 20},
		},
		{
			pending: [2]int{7, 15},
			given:   map[string]int{"a": 10, "b": 10},
		},
		{
			pending: [2]int{7, 16},
			given:   map[string]int{"a": 20},
		},
		{
			pending: [2]int{0, 16},
			streams: true,
			given:   map[string]int{"a": 10, "b": 10},
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
		assert.Equal(t, tt.given, p.rounds(10, nil), "%v", tt.pending)
	}
}

func TestPick_AvoidsFailedEndpoint(t *testing.T) {
	p := newPods(t, 3)
	for range 100 {
		p.begin("a").End(endpoint.Responded)
		assert.NotEqual(t, "a", p.pick("a").Addr(), "however many are in flight at the others")
	}
	p.Update([]string{"a"})
	assert.Equal(t, "a", p.pick("a").Addr(), "there is no other")
}

func TestEnd_EjectsOutlier(t *testing.T) {
	const ignored, responded, failed, timedOut, unreachable = endpoint.Ignored, endpoint.Responded, endpoint.Failed, endpoint.TimedOut, endpoint.Unreachable
	for name, tt := range map[string]struct {
		outcomes []endpoint.Outcome // of one endpoint, while the others respond
		ejected  bool
	}{
		"four failures in a row": {repeat(4, failed), false},
		"five failures in a row": {repeat(5, failed), true},
		"one failure in ten":     {repeat(100, failed, responded, responded, responded, responded, responded, responded, responded, responded, responded), false},
		"one failure in three":   {repeat(20, failed, responded, responded), true},
		"a silent attempt":       {repeat(1, timedOut), false},
		"two silent attempts":    {repeat(2, timedOut), true},
		"unreachable":            {repeat(1, unreachable), true},
		"ignored outcomes":       {repeat(1000, ignored), false},
		"short time-outs":        {repeat(1000, endpoint.TimedOutAfter(99*time.Millisecond)), false},
		"time-outs of 100 ms":    {repeat(2, endpoint.TimedOutAfter(100*time.Millisecond)), true},
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

// An endpoint that responds to others while one attempt times out is slow, not
// silent.
func TestEnd_TimeoutBesideResponses(t *testing.T) {
	p := newPods(t, 3)
	for range 100 {
		slow := p.begin("a")
		p.rounds(10, nil)
		slow.End(endpoint.TimedOut)
		require.Equal(t, "abc", p.inUse())
	}
}

func TestEnd_EjectsNoneIfAllFail(t *testing.T) {
	for _, o := range []endpoint.Outcome{endpoint.Failed, endpoint.TimedOut, endpoint.Unreachable} {
		for _, n := range []int{1, 2, 3, 10} {
			synctest.Test(t, func(t *testing.T) {
				p := newPods(t, n)
				all := each(o, p.addrs...)
				p.rounds(100, all)
				for addr, given := range p.rounds(100, all) {
					assert.Equal(t, 100, given, "outcome %d, %s of %d", o, addr, n)
				}
			})
		}
	}
}

func TestEnd_EjectsNoneIfAllFailPartly(t *testing.T) {
	p := newPods(t, 3)
	for range 100 {
		p.rounds(1, each(endpoint.Failed, p.addrs...))
		require.Equal(t, "abc", p.inUse())
		p.rounds(2, nil)
	}
}

// The other endpoints must be able to carry the load, so at most half are ejected. All
// endpoints that do not respond are ejected, except the last.
func TestEnd_KeepsEnoughInUse(t *testing.T) {
	for _, tt := range []struct {
		outcome              endpoint.Outcome
		pods, failing, inUse int
	}{
		{endpoint.Failed, 1, 1, 1},
		{endpoint.Failed, 2, 1, 1},
		{endpoint.Failed, 3, 1, 2},
		{endpoint.Failed, 3, 2, 2},
		{endpoint.Failed, 4, 2, 2},
		{endpoint.Failed, 4, 3, 2},
		{endpoint.Failed, 5, 3, 3},
		{endpoint.TimedOut, 1, 1, 1},
		{endpoint.TimedOut, 2, 1, 1},
		{endpoint.TimedOut, 3, 2, 1},
		{endpoint.TimedOut, 5, 4, 1},
		{endpoint.Unreachable, 1, 1, 1},
		{endpoint.Unreachable, 5, 4, 1},
	} {
		synctest.Test(t, func(t *testing.T) {
			p := newPods(t, tt.pods)
			p.rounds(30, each(tt.outcome, p.addrs[:tt.failing]...))
			assert.Len(t, p.inUse(), tt.inUse, "%+v", tt)
		})
	}
}

// An endpoint that was ejected for its failures is readmitted when the others
// turn silent and too few remain.
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

// The failures of the first do not raise the mean that the second is compared
// with.
func TestEnd_ComparesWithEndpointsInUse(t *testing.T) {
	p := newPods(t, 4)
	p.end("a", repeat(5, endpoint.Failed)...)
	p.end("b", repeat(5, endpoint.Failed)...)
	assert.Equal(t, "cd", p.inUse())
}

// An overload may hit one endpoint first. It is readmitted once the others fail
// as often, and does not make them outliers.
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

// When endpoints go, those that are ejected may be too many.
func TestUpdate_ReadmitsIfTooFewRemain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPods(t, 4)
		p.rounds(10, each(endpoint.Failed, "a", "b"))
		require.Equal(t, "cd", p.inUse())
		p.Update([]string{"a", "b", "c"})
		assert.Equal(t, "ac", p.inUse(), "two of three would be too many")
		p.Update([]string{"b"})
		assert.Equal(t, "b", p.inUse(), "it is all there is")
	})
}

func TestUpdate_KeepsRatesOfKnownAddresses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPods(t, 3)
		p.end("a", endpoint.Unreachable)
		require.Equal(t, "bc", p.inUse())
		p.Update([]string{"a", "b", "c"})
		assert.Equal(t, "bc", p.inUse())
		p.Update([]string{"b", "c"}, "a")
		p.Update([]string{"a", "b", "c"})
		assert.Equal(t, "bc", p.inUse(), "a was known, although not ready")
		p.Update([]string{"b", "c"})
		p.Update([]string{"a", "b", "c"})
		assert.Equal(t, "abc", p.inUse(), "a was gone")
	})
}

// Attempts that end when no endpoint is ready leave none ejected: no endpoint
// was better. (The connections to all pods may be lost at once.)
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

// A trial is one attempt. Its success readmits the endpoint, with no failures
// remembered.
func TestTrial_SuccessReadmits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPods(t, 3)
		p.end("a", repeat(5, endpoint.Failed)...)
		time.Sleep(10*time.Second - time.Nanosecond)
		assert.Zero(t, p.rounds(10, nil)["a"], "not due")

		time.Sleep(time.Nanosecond)
		assert.Equal(t, 1, p.rounds(10, each(endpoint.Failed, "a"))["a"], "it fails")
		time.Sleep(10*time.Second - time.Nanosecond)
		assert.Zero(t, p.rounds(10, nil)["a"], "not due")

		time.Sleep(time.Nanosecond)
		assert.Zero(t, p.pickAvoiding("b")["a"], "a retry is no trial")
		trial := p.pick("")
		assert.Equal(t, "a", trial.Addr())
		assert.Zero(t, p.rounds(10, nil)["a"], "one trial at a time")
		trial.End(endpoint.Responded)
		assert.Equal(t, map[string]int{"a": 10, "b": 10, "c": 10}, p.rounds(10, nil))
		p.end("a", repeat(4, endpoint.Failed)...)
		assert.Equal(t, "abc", p.inUse())
	})
}

// pickAvoiding makes ten retries and returns how many each endpoint was given.
func (p pods) pickAvoiding(addr string) map[string]int {
	given := map[string]int{}
	for range 10 {
		a := p.pick(addr)
		given[a.Addr()]++
		a.End(endpoint.Ignored)
	}
	return given
}

// The times between trials that fail.
func TestTrial_Timing(t *testing.T) {
	for name, tt := range map[string]struct {
		ejects []endpoint.Outcome
		trial  endpoint.Outcome
		after  []int // seconds
	}{
		"refused": {
			ejects: repeat(1, endpoint.Unreachable),
			trial:  endpoint.Unreachable,
			after:  []int{1, 2, 4, 8, 10, 10},
		},
		"failing": {
			ejects: repeat(5, endpoint.Failed),
			trial:  endpoint.Failed,
			after:  []int{10, 10, 10},
		},
		"silent": {
			ejects: repeat(2, endpoint.TimedOut),
			trial:  endpoint.TimedOut,
			after:  []int{10, 10, 10},
		},
		"refused, then silent": {
			ejects: repeat(1, endpoint.Unreachable),
			trial:  endpoint.TimedOut,
			after:  []int{1, 10, 10},
		},
		"outcome that tells nothing": {
			ejects: repeat(1, endpoint.Unreachable),
			trial:  endpoint.Ignored,
			after:  []int{1, 2, 4, 8, 10, 10},
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPods(t, 3)
				p.end("a", tt.ejects...)
				require.Equal(t, "bc", p.inUse())
				for _, seconds := range tt.after {
					time.Sleep(time.Duration(seconds)*time.Second - time.Nanosecond)
					require.Zero(t, p.rounds(3, nil)["a"], "%d s are not over", seconds)
					time.Sleep(time.Nanosecond)
					require.Equal(t, 1, p.rounds(3, each(tt.trial, "a"))["a"], "after %d s", seconds)
				}
			})
		})
	}
}

// A stream that is the trial may never have a message.
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

// Each of several ejected endpoints has its trial.
func TestTrial_OfEveryEjectedEndpoint(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPods(t, 4)
		p.rounds(10, each(endpoint.Failed, "a", "b"))
		require.Equal(t, "cd", p.inUse())
		time.Sleep(10 * time.Second)
		given := p.rounds(2, each(endpoint.Failed, "a", "b"))
		assert.Equal(t, 1, given["a"])
		assert.Equal(t, 1, given["b"])
	})
}

// The outcome of an attempt that was sent before the ejection changes nothing,
// whether the endpoint is ejected still or has been readmitted.
func TestEnd_IgnoresAttemptsBeforeEjection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPods(t, 3)
		var before []endpoint.Attempt
		for range 60 {
			_, a, _ := p.Pick("", true) // streams, which do not make it crowded
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
		assert.Equal(t, "bc", p.inUse(), "a response does not readmit")
		before[8].End(endpoint.Unreachable)

		time.Sleep(10 * time.Second)
		p.rounds(1, nil) // the trial, unless a refused connection had brought it forward
		require.Equal(t, "abc", p.inUse())
		for _, a := range before[9:] {
			a.End(endpoint.Failed)
		}
		assert.Equal(t, "abc", p.inUse(), "a failure does not eject again")
	})
}

// A trial belongs to its ejection too.
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

// A pick costs about the same with thousands of endpoints, ejected ones included.
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
	leastFew, leastMany := time.Hour, time.Hour
	for range runs { // the minimum: a mean would include other load
		leastFew, leastMany = min(leastFew, cost(few)), min(leastMany, cost(many))
	}
	assert.Less(t, leastMany, 3*leastFew, "%d picks", picks)
}

// manyPods returns a Set of which about a third is ejected, for the next 10 s.
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
	silent := addrs[:n/3]
	for _, a := range attempts {
		if _, found := slices.BinarySearch(silent, a.Addr()); found {
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

// BenchmarkEnd_Failed measures a failure where all fail alike, which looks at
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

// A hung endpoint stays ejected while the only other one reconnects, and returns
// when that cannot connect.
func TestExpect_KeepsEndpointsEjected(t *testing.T) {
	s := endpoint.NewSet(func(addr string) string { return addr })
	s.Update([]string{"hung", "fine"})
	for range 20 {
		if addr, a, _ := s.Pick("", false); addr == "hung" {
			a.End(endpoint.TimedOut)
		} else {
			a.End(endpoint.Responded)
		}
	}
	s.Expect(1)
	s.Update([]string{"hung"}, "fine")
	_, _, ok := s.Pick("", false)
	assert.False(t, ok, "the call waits for the other endpoint")

	s.Expect(0)
	s.Update([]string{"hung"}, "fine")
	addr, _, ok := s.Pick("", false)
	assert.True(t, ok)
	assert.Equal(t, "hung", addr, "better than none")
}

// An ejected endpoint gets its trial even while another seems to connect, which
// may take for ever.
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
