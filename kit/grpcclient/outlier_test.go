package grpcclient

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/balancer"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/stats"
	"google.golang.org/grpc/status"
)

// pods is a picker over some endpoints, less the connections.
type pods struct {
	*picker
	t       *testing.T
	streams bool // are what is sent
}

func newPods(t *testing.T, n int) pods {
	t.Helper()
	p, g := &picker{}, &group{}
	for range n {
		e := &endpoint{of: g}
		g.ready = append(g.ready, e)
		p.ring = append(p.ring, place{never{}, e})
	}
	return pods{picker: p, t: t}
}

// never is a connection's picker that is asked for nothing but its turn.
type never struct{}

func (never) Pick(balancer.PickInfo) (balancer.PickResult, error) { return balancer.PickResult{}, nil }

// send begins an attempt, and returns which pod it was sent to and a function
// that tells the attempt of its events.
func (p pods) send() (pod int, tell func(...stats.RPCStats)) {
	p.t.Helper()
	ctx := attempts{}.TagRPC(p.t.Context(), &stats.RPCTagInfo{})
	attempts{}.HandleRPC(ctx, &stats.Begin{IsServerStream: p.streams})
	_, err := p.Pick(balancer.PickInfo{Ctx: ctx})
	require.NoError(p.t, err)
	tell = func(events ...stats.RPCStats) {
		for _, event := range events {
			attempts{}.HandleRPC(ctx, event)
		}
	}
	for i, at := range p.ring {
		if at.endpoint == attemptOf(ctx).to {
			pod = i
		}
	}
	tell(&stats.OutHeader{})
	return pod, tell
}

// sendTo sends attempts, of which only one to this pod is heard of.
func (p pods) sendTo(want int) (tell func(...stats.RPCStats)) {
	p.t.Helper()
	for pod := -1; pod != want; {
		pod, tell = p.send()
	}
	return tell
}

// end is the end of an attempt that took a second.
func end(err error) stats.RPCStats {
	return &stats.End{Error: err, BeginTime: time.Unix(0, 0), EndTime: time.Unix(1, 0)}
}

// rounds makes n attempts a pod, each of which ends as its pod's do, and
// returns how many each pod had.
func (p pods) rounds(n int, ends ...error) []int {
	p.t.Helper()
	had := make([]int, len(p.ring))
	for range n * len(p.ring) {
		pod, tell := p.send()
		tell(end(ends[pod]))
		had[pod]++
	}
	return had
}

var (
	errFailed = status.Error(codes.Unavailable, "not now")
	errLate   = status.Error(codes.DeadlineExceeded, "too late")
)

func TestOutlierIsWhatFailsMarkedlyMoreOftenThanTheOthers(t *testing.T) {
	quickly := func(err error) stats.RPCStats {
		return &stats.End{Error: err, BeginTime: time.Unix(0, 0), EndTime: time.Unix(0, int64(hurry)-1)}
	}
	type attempt []stats.RPCStats
	message, ok, failed, late := &stats.InPayload{}, attempt{end(nil)}, attempt{end(errFailed)}, attempt{end(errLate)}
	canceled, bad, panicked := status.Error(codes.Canceled, ""), status.Error(codes.InvalidArgument, ""), status.Error(codes.Internal, "")
	for name, tt := range map[string]struct {
		attempts []attempt // at one pod, while the others answer
		out      bool
	}{
		"a failure":                {[]attempt{failed}, false},
		"four in a row":            {slices.Repeat([]attempt{failed}, 4), false},
		"five in a row":            {slices.Repeat([]attempt{failed}, 5), true},
		"one of ten":               {slices.Repeat([]attempt{failed, ok, ok, ok, ok, ok, ok, ok, ok, ok}, 10), false},
		"a time-out":               {[]attempt{late}, false},
		"two time-outs":            {slices.Repeat([]attempt{late}, 2), true},
		"hurried time-outs":        {slices.Repeat([]attempt{{quickly(errLate)}}, 100), false},
		"callers that leave":       {slices.Repeat([]attempt{{end(canceled)}}, 100), false},
		"requests that are bad":    {slices.Repeat([]attempt{{end(bad)}}, 100), false},
		"five panics in a row":     {slices.Repeat([]attempt{{end(panicked)}}, 5), true},
		"streams that are cut off": {slices.Repeat([]attempt{{message, end(errFailed)}}, 100), false},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPods(t, 3)
			sick := p.ring[0].endpoint
			for _, events := range tt.attempts {
				p.sendTo(0)(events...)
			}
			assert.Equal(t, tt.out, sick.isOut(), "rate %v", sick.rate)
		})
	}
}

func TestOneThatFailsAThirdIsLeftOutWithinTensOfCalls(t *testing.T) {
	p := newPods(t, 3)
	calls := 0
	for ; calls < 1000 && !p.ring[0].endpoint.isOut(); calls++ {
		p.rounds(1, []error{errFailed, nil, nil}[calls%3], nil, nil)
	}
	assert.Less(t, calls, 50)
}

// A busy pod that lets one call in a hundred wait too long is not silent.
func TestTimeoutsBetweenAnswersAreNoSilence(t *testing.T) {
	p := newPods(t, 3)
	for range 100 {
		slow := p.sendTo(0)
		p.rounds(10, nil, nil, nil)
		slow(end(errLate))
		require.False(t, p.ring[0].endpoint.isOut())
	}
}

func TestAttemptsThatWereNeverSentSayNothing(t *testing.T) {
	p := newPods(t, 3)
	for range 100 {
		ctx := attempts{}.TagRPC(t.Context(), &stats.RPCTagInfo{})
		_, err := p.Pick(balancer.PickInfo{Ctx: ctx})
		require.NoError(t, err)
		if attemptOf(ctx).to == p.ring[0].endpoint {
			attempts{}.HandleRPC(ctx, end(errFailed))
		}
	}
	assert.False(t, p.ring[0].endpoint.isOut())
}

func TestWhereAllFailNoneIsLeftOut(t *testing.T) {
	for name, err := range map[string]error{"they fail": errFailed, "they are silent": errLate} {
		for _, n := range []int{1, 2, 3, 10} {
			t.Run(name, func(t *testing.T) {
				p := newPods(t, n)
				errs := make([]error, n)
				for i := range errs {
					errs[i] = err
				}
				p.rounds(100, errs...)
				for i, had := range p.rounds(100, errs...) {
					assert.Equal(t, 100, had, "pod %d of %d", i, n)
				}
			})
		}
	}
}

func TestWhereAllFailAThirdNoneIsEverLeftOut(t *testing.T) {
	p := newPods(t, 3)
	for range 100 {
		p.rounds(1, errFailed, errFailed, errFailed)
		for _, at := range p.ring {
			require.False(t, at.endpoint.isOut())
		}
		p.rounds(2, nil, nil, nil)
	}
}

// As an overload does that the first pod only met first.
func TestOutlierIsNoneAnyMoreOnceTheOthersFailAsOften(t *testing.T) {
	p := newPods(t, 3)
	p.rounds(5, errFailed, nil, nil)
	require.True(t, p.ring[0].endpoint.isOut())
	for range 2 {
		var tells []func(...stats.RPCStats)
		for range 100 {
			_, tell := p.send()
			tells = append(tells, tell)
		}
		for _, tell := range tells {
			tell(end(errFailed))
		}
	}
	for _, at := range p.ring {
		assert.False(t, at.endpoint.isOut(), "nor is one of the others now")
	}
	assert.Equal(t, []int{50, 50, 50}, p.rounds(50, errFailed, errFailed, errFailed))
}

func TestOutlierIsNoExcuseForTheNext(t *testing.T) {
	p := newPods(t, 4)
	p.rounds(5, errFailed, nil, nil, nil)
	for range 5 {
		p.sendTo(1)(end(errFailed))
	}
	assert.Equal(t, []int{0, 0, 10, 10}, p.rounds(5, nil, nil, nil, nil))
}

func TestAtMostHalfAreLeftOut(t *testing.T) {
	for _, tt := range []struct{ pods, sick, out int }{
		{1, 1, 0}, {2, 1, 1}, {3, 1, 1}, {3, 2, 1}, {4, 2, 2}, {4, 3, 2}, {5, 3, 2},
	} {
		p := newPods(t, tt.pods)
		errs := make([]error, tt.pods)
		for i := range tt.sick {
			errs[i] = errFailed
		}
		p.rounds(30, errs...)
		out := 0
		for _, at := range p.ring {
			if at.endpoint.isOut() {
				out++
			}
		}
		assert.Equal(t, tt.out, out, "%d of %d are sick", tt.sick, tt.pods)
	}
}

// Whoever gives no answer at all is of no use, however many they are.
func TestAllWhoAreSilentAreLeftOutAsLongAsOneIsNot(t *testing.T) {
	for _, tt := range []struct{ pods, silent, out int }{{1, 1, 0}, {2, 2, 0}, {3, 2, 2}, {5, 4, 4}, {3, 3, 0}} {
		p := newPods(t, tt.pods)
		errs := make([]error, tt.pods)
		for i := range tt.silent {
			errs[i] = errLate
		}
		p.rounds(30, errs...)
		out := 0
		for _, at := range p.ring {
			if !at.endpoint.isIn() {
				out++
			}
		}
		assert.Equal(t, tt.out, out, "%d of %d are silent", tt.silent, tt.pods)
	}
}

func TestPodWhereFarMoreWaitIsLeftOut(t *testing.T) {
	for _, tt := range []struct {
		waiting [3]int32
		had     []int
	}{
		{[3]int32{0, 0, 0}, []int{10, 10, 10}},
		{[3]int32{0, 1, 0}, []int{10, 10, 10}},
		{[3]int32{0, 2, 0}, []int{15, 0, 15}},
		{[3]int32{2, 0, 2}, []int{0, 30, 0}},
		{[3]int32{7, 15, 7}, []int{10, 10, 10}},
		{[3]int32{7, 16, 7}, []int{15, 0, 15}},
	} {
		p := newPods(t, 3)
		for i, n := range tt.waiting {
			p.ring[i].endpoint.waiting.Store(n)
		}
		assert.Equal(t, tt.had, p.rounds(10, nil, nil, nil), "%v wait", tt.waiting)
		for i, n := range tt.waiting {
			assert.Equal(t, n, p.ring[i].endpoint.waiting.Load(), "none waits any more")
		}
	}
	p := newPods(t, 3)
	p.streams = true
	p.sendTo(1)
	for _, at := range p.ring {
		assert.Zero(t, at.endpoint.waiting.Load(), "a stream that has nothing to say is no load")
	}
}

func TestAnAttemptThatIsSentTwiceWaitsOnce(t *testing.T) {
	p := newPods(t, 2)
	ctx := attempts{}.TagRPC(t.Context(), &stats.RPCTagInfo{})
	attempts{}.HandleRPC(ctx, &stats.Begin{})
	for range 5 { // the connection had just gone
		_, err := p.Pick(balancer.PickInfo{Ctx: ctx})
		require.NoError(t, err)
	}
	assert.EqualValues(t, 1, p.ring[0].endpoint.waiting.Load()+p.ring[1].endpoint.waiting.Load())
	attempts{}.HandleRPC(ctx, end(errFailed))
	assert.Zero(t, p.ring[0].endpoint.waiting.Load()+p.ring[1].endpoint.waiting.Load())
}

func TestTooFewOthersBringOneBack(t *testing.T) {
	p := newPods(t, 4)
	p.rounds(10, errFailed, errFailed, nil, nil)
	assert.Zero(t, p.rounds(5, nil, nil, nil, nil)[0])
	p.ring = p.ring[:3] // one is gone: two of three would be too many
	p.ring[0].endpoint.of.ready = p.ring[0].endpoint.of.ready[:3]
	had := p.rounds(5, nil, nil, nil)
	assert.Equal(t, 1, min(had[0], 1)+min(had[1], 1), "%v", had)
	p.ring = p.ring[:1]
	p.ring[0].endpoint.of.ready = p.ring[0].endpoint.of.ready[:1]
	assert.Equal(t, []int{5}, p.rounds(5, errFailed), "it is all there is")
}

func TestTrialIsOneCallAndAnAnswerEndsIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPods(t, 3)
		p.rounds(5, errFailed, nil, nil)
		time.Sleep(leftOut - time.Nanosecond)
		assert.Equal(t, []int{0, 15, 15}, p.rounds(10, nil, nil, nil), "its time is not up")

		time.Sleep(time.Nanosecond)
		assert.Equal(t, 1, p.rounds(10, errFailed, nil, nil)[0], "it fails")
		time.Sleep(leftOut - time.Nanosecond)
		assert.Zero(t, p.rounds(10, errFailed, nil, nil)[0], "for as long again")

		time.Sleep(time.Nanosecond)
		tell := p.sendTo(0)
		assert.Zero(t, p.rounds(10, nil, nil, nil)[0], "while it is under way there is no other")
		tell(end(nil))
		assert.Equal(t, []int{10, 10, 10}, p.rounds(10, nil, nil, nil), "it is answered")
		assert.Zero(t, p.ring[0].endpoint.rate)
	})
}

func TestTrialThatNeverEndsDoesNotHoldTheNext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPods(t, 3)
		p.rounds(5, errFailed, nil, nil)
		p.streams = true
		time.Sleep(leftOut)
		p.sendTo(0) // one that never says a word
		time.Sleep(leftOut)
		p.sendTo(0)(end(status.Error(codes.Canceled, "")))
		assert.Zero(t, p.rounds(10, nil, nil, nil)[0], "a caller that leaves tells nothing")
		time.Sleep(leftOut)
		stream := p.sendTo(0)
		stream(&stats.InPayload{})
		assert.Equal(t, []int{10, 10, 10}, p.rounds(10, nil, nil, nil), "a stream's first message is an answer")
		for range 10 {
			stream(&stats.InPayload{}, end(errFailed))
		}
		assert.Zero(t, p.ring[0].endpoint.rate)
	})
}

func TestAnswersToCallsOfBeforeBringNoneBack(t *testing.T) {
	p := newPods(t, 3)
	var tells []func(...stats.RPCStats)
	for range 100 {
		_, tell := p.send()
		tells = append(tells, tell)
	}
	p.rounds(5, errFailed, nil, nil)
	require.True(t, p.ring[0].endpoint.isOut())
	for _, tell := range tells {
		tell(end(nil))
	}
	assert.Zero(t, p.rounds(10, nil, nil, nil)[0])
}

func TestPickOutsideACallIsFollowedByNone(t *testing.T) {
	p := newPods(t, 1)
	_, err := p.Pick(balancer.PickInfo{Ctx: context.Background()})
	require.NoError(t, err)
	attempts{}.HandleRPC(context.Background(), end(errors.New("lost")))
	assert.Zero(t, p.ring[0].endpoint.rate)
}
