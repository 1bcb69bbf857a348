package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// offer is how many calls are made of service-a's /api/data.
type offer struct {
	// rate is the calls a second over each transport, however those before fare
	// (an open loop); 0 is as many as there are answers (a closed loop).
	rate float64
	// callers of each transport: so many calls at most are under way at once.
	// A call that finds none free is not made, and counts as withheld.
	callers    int
	transports []string // all, if none is named
}

// traffic is calls from outside of the cluster, each noted with its fate. It
// keeps its connections alive, as a gateway would.
type traffic struct {
	url      string
	offer    offer
	client   *http.Client
	begun    time.Time
	stopping chan struct{}
	running  sync.WaitGroup
	withheld atomic.Int64

	mu       sync.Mutex
	calls    map[string][]fate
	examples map[string]string // of failures, by class
	stall    time.Duration
}

// fate of one call.
type fate struct {
	at    time.Duration // of its end, from the beginning of the traffic
	took  time.Duration
	class string // empty: answered
}

// atTheDoor is the class of calls that service-a itself did not answer.
const atTheDoor = "no answer at the door"

// traffic starts; the test's end stops it. A call has 3 s more than service-a
// gives its own call, so that it is service-a that says what went wrong.
func (c *cluster) traffic(t *testing.T, o offer) *traffic {
	if len(o.transports) == 0 {
		o.transports = transports
	}
	f := &traffic{
		url: c.url, offer: o, begun: time.Now(), stopping: make(chan struct{}),
		client: &http.Client{
			Timeout: c.callTimeout(t) + 3*time.Second,
			Transport: &http.Transport{
				DialContext:         (&net.Dialer{Timeout: 2 * time.Second}).DialContext,
				MaxIdleConnsPerHost: o.callers * len(o.transports),
				MaxConnsPerHost:     o.callers * len(o.transports),
				IdleConnTimeout:     30 * time.Second,
			},
		},
		calls: map[string][]fate{}, examples: map[string]string{},
	}
	for _, via := range o.transports {
		if o.rate == 0 {
			for range o.callers {
				f.running.Go(func() { f.closedLoop(via) })
			}
		} else {
			f.running.Go(func() { f.openLoop(via) })
		}
	}
	f.running.Go(f.pulse)
	t.Cleanup(func() { f.stop() })
	return f
}

// trafficFor makes traffic that lasts, and says from when to when it was
// measured: the first moments, in which connections are opened, do not count.
func (c *cluster) trafficFor(t *testing.T, span time.Duration, o offer) (f *traffic, from, to time.Duration) {
	f = c.traffic(t, o)
	time.Sleep(2 * time.Second)
	from = f.now()
	time.Sleep(span)
	to = f.now()
	f.stop()
	return f, from, to
}

// callTimeout is how long service-a gives one call to service-b.
func (c *cluster) callTimeout(t tester) time.Duration {
	d, err := time.ParseDuration(c.setting(t, serviceA, "CALL_TIMEOUT"))
	require.NoError(t, err)
	return d
}

// pauseAfterFailure keeps callers whose calls fail at once from making far more
// of them than of calls that succeed.
const pauseAfterFailure = 200 * time.Millisecond

func (f *traffic) closedLoop(via string) {
	for !f.stopped() {
		if !f.call(via) {
			time.Sleep(pauseAfterFailure)
		}
	}
}

func (f *traffic) openLoop(via string) {
	free := make(chan struct{}, f.offer.callers)
	var calls sync.WaitGroup
	defer calls.Wait()
	start := time.Now()
	for made := 0; !f.stopped(); time.Sleep(time.Millisecond) {
		for due := int(time.Since(start).Seconds() * f.offer.rate); made < due; made++ {
			select {
			case free <- struct{}{}:
				calls.Go(func() {
					f.call(via)
					<-free
				})
			default:
				f.withheld.Add(1)
			}
		}
	}
}

func (f *traffic) stopped() bool {
	select {
	case <-f.stopping:
		return true
	default:
		return false
	}
}

// call makes one call, and reports whether it succeeded.
func (f *traffic) call(via string) bool {
	start := time.Now()
	class, example := f.ask(via)
	end := time.Now()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls[via] = append(f.calls[via], fate{end.Sub(f.begun), end.Sub(start), class})
	if class != "" && f.examples[class] == "" {
		f.examples[class] = fmt.Sprintf("after %s: %s", end.Sub(f.begun).Round(time.Millisecond), example)
	}
	return class == ""
}

// ask calls once. It returns no class if the call was answered.
func (f *traffic) ask(via string) (class, example string) {
	resp, err := f.client.Get(f.url + "/api/data?via=" + via)
	if err != nil {
		return atTheDoor, err.Error()
	}
	defer resp.Body.Close() //nolint:errcheck // it is read whole
	body, err := io.ReadAll(resp.Body)
	switch {
	case err != nil:
		return atTheDoor, err.Error()
	case resp.StatusCode == http.StatusOK:
		return "", ""
	}
	var problem struct{ Class string }
	if err := json.Unmarshal(body, &problem); err != nil || problem.Class == "" {
		return fmt.Sprintf("status %d", resp.StatusCode), string(body)
	}
	return fmt.Sprintf("%s (%d)", problem.Class, resp.StatusCode), string(body)
}

// pulse notes the longest that the machine kept this process waiting: no call
// could be faster.
func (f *traffic) pulse() {
	const beat = 10 * time.Millisecond
	for !f.stopped() {
		start := time.Now()
		time.Sleep(beat)
		late := time.Since(start) - beat
		f.mu.Lock()
		f.stall = max(f.stall, late)
		f.mu.Unlock()
	}
}

// stop waits for the calls that are under way.
func (f *traffic) stop() {
	f.mu.Lock()
	if !f.stopped() {
		close(f.stopping)
	}
	f.mu.Unlock()
	f.running.Wait()
	f.client.CloseIdleConnections()
}

// figures of a transport's calls in a span of time.
type figures struct {
	Via string `json:"via"`
	// During says which span, where a row has more than one.
	During string         `json:"during,omitempty"`
	Calls  int            `json:"calls"`
	Failed map[string]int `json:"failed"` // by class
	// PerSecond is the calls that were answered.
	PerSecond float64 `json:"answeredPerSecond"`
	// InFlight is how many calls were in flight, on average (Little's law).
	InFlight float64 `json:"inFlight"`
	// P50, P99 and Max are of all calls, those that failed too, in milliseconds.
	P50 float64 `json:"p50Ms"`
	P99 float64 `json:"p99Ms"`
	Max float64 `json:"maxMs"`
	// Gap is the longest that there was no answer, in milliseconds.
	Gap float64 `json:"longestGapMs"`
}

func (g figures) failed() int {
	n := 0
	for _, count := range g.Failed {
		n += count
	}
	return n
}

func (g figures) String() string {
	return fmt.Sprintf("%d calls, failed %v, %.0f answered a second, %.0f in flight, p50 %.1f ms, p99 %.1f ms, max %.0f ms, longest gap %.0f ms",
		g.Calls, g.Failed, g.PerSecond, g.InFlight, g.P50, g.P99, g.Max, g.Gap)
}

// now is the time as the traffic counts it.
func (f *traffic) now() time.Duration { return time.Since(f.begun) }

// between are the calls over a transport that ended in a span of time.
func (f *traffic) between(via string, from, to time.Duration) []fate {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []fate
	for _, call := range f.calls[via] {
		if call.at >= from && call.at < to {
			out = append(out, call)
		}
	}
	return out
}

// lastFailure is when the last call failed that ended in a span of time; its
// beginning, if none did.
func (f *traffic) lastFailure(via string, from, to time.Duration) time.Duration {
	last := from
	for _, call := range f.between(via, from, to) {
		if call.class != "" {
			last = call.at
		}
	}
	return last
}

// figures of the calls over a transport that ended in a span of time.
func (f *traffic) figures(via, during string, from, to time.Duration) figures {
	g := figures{Via: via, During: during, Failed: map[string]int{}}
	last, gap := from, time.Duration(0)
	var times []time.Duration
	var total time.Duration
	for _, call := range f.between(via, from, to) {
		g.Calls++
		total += call.took
		times = append(times, call.took)
		if call.class != "" {
			g.Failed[call.class]++
			continue
		}
		gap, last = max(gap, call.at-last), call.at
	}
	gap = max(gap, to-last)
	g.Gap = ms(gap)
	g.PerSecond = float64(g.Calls-g.failed()) / (to - from).Seconds()
	g.InFlight = total.Seconds() / (to - from).Seconds()
	if len(times) > 0 {
		slices.Sort(times)
		g.P50, g.P99, g.Max = ms(rank(times, 0.50)), ms(rank(times, 0.99)), ms(times[len(times)-1])
	}
	return g
}

// rank is the smallest of sorted times that at least this share did not exceed.
func rank(times []time.Duration, share float64) time.Duration {
	return times[max(int(math.Ceil(share*float64(len(times)))), 1)-1]
}

func ms(d time.Duration) float64 {
	return float64(d.Round(10*time.Microsecond)) / float64(time.Millisecond)
}

// slower is the share of calls that took longer.
func slower(calls []fate, than time.Duration) float64 {
	n := 0
	for _, call := range calls {
		if call.took > than {
			n++
		}
	}
	return float64(n) / float64(max(len(calls), 1))
}

// awaitAnswers waits until calls over every transport are answered.
func (f *traffic) awaitAnswers(t *testing.T) {
	t.Helper()
	from := f.now()
	eventually(t, time.Minute, "no answers", func(is *assert.CollectT) {
		for _, via := range f.offer.transports {
			g := f.figures(via, "", from, f.now())
			assert.Greater(is, g.Calls-g.failed(), 10, "%s: %v", via, f.why())
		}
	})
}

// why is an example of each kind of failure.
func (f *traffic) why() map[string]string {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := map[string]string{}
	for class, example := range f.examples {
		out[class] = example[:min(len(example), 600)]
	}
	return out
}

// stalled is the longest that the machine stood still.
func (f *traffic) stalled() time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.stall
}

// listener reads service-a's stream of events, as a browser would.
type listener struct {
	mu       sync.Mutex
	last     time.Time
	gap      time.Duration
	events   int
	problems int
	breaks   int // of the connection to service-a
	pods     []string
}

// listen follows /api/stream until the test ends.
func (c *cluster) listen(t *testing.T, interval time.Duration) *listener {
	l := &listener{last: time.Now()}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		for ctx.Err() == nil {
			_ = l.read(ctx, fmt.Sprintf("%s/api/stream?interval=%s", c.url, interval)) // counted as a break
			l.mu.Lock()
			l.breaks++
			l.mu.Unlock()
			select { // as EventSource does after "retry: 1000"
			case <-time.After(time.Second):
			case <-ctx.Done():
			}
		}
	})
	t.Cleanup(func() { cancel(); running.Wait() })
	return l
}

func (l *listener) read(ctx context.Context, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close() //nolint:errcheck // it never ends
	return events(resp.Body, l.take)
}

func (l *listener) take(kind, data string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if kind != "data" {
		l.problems++
		return
	}
	var message struct {
		Data struct{ ServedBy struct{ Pod string } }
	}
	if json.Unmarshal([]byte(data), &message) != nil {
		l.problems++
		return
	}
	now := time.Now()
	if l.events > 0 {
		l.gap = max(l.gap, now.Sub(l.last))
	}
	l.last = now
	l.events++
	if pod := message.Data.ServedBy.Pod; len(l.pods) == 0 || l.pods[len(l.pods)-1] != pod {
		l.pods = append(l.pods, pod)
	}
}

// pod is who served the last event.
func (l *listener) pod() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.pods) == 0 {
		return ""
	}
	return l.pods[len(l.pods)-1]
}
