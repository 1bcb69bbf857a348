package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// counts is service-a's answer to /api/spread.
type counts struct {
	ServedBy    struct{ Pod string }
	N, Attempts int
	Pods        map[string]int
	Errors      map[string]int
}

// outsider asks service-a. It opens a connection a request: one that was kept
// would stay on one service-a, where each new one is balanced.
var outsider = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 20 * time.Second}

// spread has service-a at url ask service-b n times.
func spread(url, via string, n int) (counts, error) {
	var got counts
	resp, err := outsider.Get(fmt.Sprintf("%s/api/spread?via=%s&n=%d", url, via, n))
	if err != nil {
		return got, err
	}
	defer resp.Body.Close() //nolint:errcheck // it is read whole
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("status %d: %s", resp.StatusCode, body)
	}
	if err == nil {
		err = json.Unmarshal(body, &got)
	}
	return got, err
}

// plan is how much load there is: each worker asks for N calls, waits for all
// of them, pauses, and goes on. So a slow cluster gets less load, not more.
type plan struct {
	transports []string
	workers    int // of each transport
	n          int
	pause      time.Duration
}

// steady is up to 150 calls a second: enough to meet every moment of a change,
// and little beside what the change itself costs a machine that is all nodes.
var steady = plan{transports: transports, workers: 2, n: 16, pause: 400 * time.Millisecond}

// tally is what became of a transport's calls. First and Last say when each
// pod was first and last seen to have answered one.
type tally struct {
	Calls, Attempts int
	Failed          map[string]int // by class
	First, Last     map[string]time.Time
}

func (s tally) String() string {
	return fmt.Sprintf("%d calls, %d of them repeated, failed %v", s.Calls, s.Attempts-s.Calls, s.Failed)
}

// load is load on service-b through service-a, from outside of the cluster.
type load struct {
	stopping chan struct{}
	workers  sync.WaitGroup

	mu  sync.Mutex
	via map[string]*tally
	// slowest is the longest that service-a took to say that it is alive, for
	// which it asks nobody: so long did the machine stand still.
	slowest time.Duration
}

// load starts; the test's end stops it.
func (c *cluster) load(t *testing.T, p plan) *load {
	l := &load{stopping: make(chan struct{}), via: map[string]*tally{}}
	for _, via := range p.transports {
		l.via[via] = &tally{Failed: map[string]int{}, First: map[string]time.Time{}, Last: map[string]time.Time{}}
		for range p.workers {
			l.workers.Go(func() { l.work(c.url, via, p) })
		}
	}
	l.workers.Go(func() { l.watch(c.url) })
	t.Cleanup(l.stop)
	return l
}

func (l *load) watch(url string) {
	for {
		start := time.Now()
		resp, err := outsider.Get(url + "/livez")
		if err == nil {
			_ = resp.Body.Close() // the answer was all
		}
		l.mu.Lock()
		l.slowest = max(l.slowest, time.Since(start))
		l.mu.Unlock()
		select {
		case <-l.stopping:
			return
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func (l *load) work(url, via string, p plan) {
	for {
		got, err := spread(url, via, p.n)
		l.count(via, got, err, time.Now())
		select {
		case <-l.stopping:
			return
		case <-time.After(p.pause):
		}
	}
}

func (l *load) count(via string, got counts, err error, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.via[via]
	if err != nil {
		s.Failed["service-a: "+err.Error()]++
		return
	}
	s.Calls += got.N
	s.Attempts += got.Attempts
	for class, n := range got.Errors {
		s.Failed[class] += n
	}
	for pod := range got.Pods {
		if s.First[pod].IsZero() {
			s.First[pod] = now
		}
		s.Last[pod] = now
	}
}

// stop waits for the calls that are under way.
func (l *load) stop() {
	l.mu.Lock()
	select {
	case <-l.stopping:
	default:
		close(l.stopping)
	}
	l.mu.Unlock()
	l.workers.Wait()
}

// now is the tally so far.
func (l *load) now(via string) tally {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := *l.via[via]
	s.Failed, s.First, s.Last = maps.Clone(s.Failed), maps.Clone(s.First), maps.Clone(s.Last)
	return s
}

// forget a pod's first answers: the next one is its first.
func (l *load) forget(pod string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range l.via {
		delete(s.First, pod)
	}
}

// awaitAll waits until each of the pods has answered over each transport.
func (l *load) awaitAll(t *testing.T, within time.Duration, pods []string) {
	t.Helper()
	eventually(t, within, "not every pod gets calls", func(is *assert.CollectT) {
		for _, via := range transports {
			assert.Subset(is, names(l.now(via).First), pods, via)
		}
	})
}

// wantNoneFailed stops the load.
func (l *load) wantNoneFailed(t *testing.T) {
	t.Helper()
	l.stop()
	t.Logf("service-a itself was alive within %s", l.slowest.Round(time.Millisecond))
	for _, via := range transports {
		got := l.now(via)
		t.Logf("%s: %s", via, got)
		assert.Empty(t, got.Failed, "%s. Meanwhile service-a took up to %s to say that it is alive. "+
			"If that is a second or more, the machine is too busy to tell a call that is late from one that is lost", via, l.slowest)
		require.Positive(t, got.Calls, via)
	}
}
