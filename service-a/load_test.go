package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"example.com/tandem/kit/call"
	"example.com/tandem/kit/grpcclient"
	"example.com/tandem/kit/httpclient"
	"example.com/tandem/kit/kittest"
	"example.com/tandem/service-a/internal/backend"
)

// load is a group of callers that call service-b over one transport without pause:
// each makes its next call as soon as the previous one has ended.
type load struct {
	via         string
	call        callFunc
	callers     []*caller
	stopped     atomic.Bool
	running     sync.WaitGroup
	begin       time.Time
	lastSuccess atomic.Int64 // time since begin at which the last successful call ended
	gap         atomic.Int64 // longest time between the ends of two successful calls
}

// callFunc makes one call. It returns the name of the instance that served the
// call or, if the call is lost, its class and error text.
type callFunc func() (served, lost, errText string)

// caller records its own calls, so that callers do not share a lock.
type caller struct {
	mu         sync.Mutex
	inCall     bool
	durations  []time.Duration
	served     map[string]int // calls by instance
	lost       map[string]int // calls by class
	firstError string
	event      time.Time     // time of the last event
	normal     time.Duration // duration of a call that the event does not delay
	hits       int           // calls that the event hit (see markEvent)
}

func (l *load) start(callers int) {
	l.begin = time.Now()
	for range callers {
		c := &caller{served: map[string]int{}, lost: map[string]int{}}
		l.callers = append(l.callers, c)
		l.running.Go(func() {
			for !l.stopped.Load() {
				begin := c.begin()
				served, lost, errText := l.call()
				end := time.Now()
				c.end(begin, end, served, lost, errText)
				if lost == "" {
					l.addSuccess(end.Sub(l.begin))
				}
			}
		})
	}
}

func (l *load) stop() {
	l.stopped.Store(true)
	l.running.Wait()
}

func (l *load) addSuccess(at time.Duration) {
	gap := int64(at) - l.lastSuccess.Swap(int64(at))
	for longest := l.gap.Load(); gap > longest && !l.gap.CompareAndSwap(longest, gap); {
		longest = l.gap.Load()
	}
}

func (c *caller) begin() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.inCall = true
	return time.Now()
}

func (c *caller) end(begin, end time.Time, served, lost, errText string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.inCall = false
	c.durations = append(c.durations, end.Sub(begin))
	if lost == "" {
		c.served[served]++
	} else {
		c.lost[lost]++
		c.firstError = cmp.Or(c.firstError, errText)
	}
	if begin.Before(c.event) && end.After(c.event) && (lost != "" || end.Sub(begin) > c.normal) {
		c.hits++
	}
}

// each calls visit for every caller, and holds the caller's lock meanwhile.
func (l *load) each(visit func(*caller)) {
	for _, c := range l.callers {
		c.mu.Lock()
		visit(c)
		c.mu.Unlock()
	}
}

// markEvent starts to count the calls that an event hits: those in flight now that
// are lost, or take longer than normal. It returns the number of calls in flight.
func (l *load) markEvent(normal time.Duration) (inFlight int) {
	now := time.Now()
	l.each(func(c *caller) {
		c.event, c.normal, c.hits = now, normal, 0
		if c.inCall {
			inFlight++
		}
	})
	return inFlight
}

func (l *load) hits() (total int) {
	l.each(func(c *caller) { total += c.hits })
	return total
}

func (l *load) served() map[string]int {
	return l.sum(func(c *caller) map[string]int { return c.served })
}

func (l *load) lost() map[string]int {
	return l.sum(func(c *caller) map[string]int { return c.lost })
}

func (l *load) sum(counts func(*caller) map[string]int) map[string]int {
	total := map[string]int{}
	l.each(func(c *caller) {
		for key, n := range counts(c) {
			total[key] += n
		}
	})
	return total
}

// report sums up the calls of a load.
type report struct {
	calls, lost         int
	classes, firstError string
	p50, p99, gap       time.Duration
}

func (l *load) report() report {
	r := report{gap: time.Duration(l.gap.Load())}
	var durations []time.Duration
	l.each(func(c *caller) {
		durations = append(durations, c.durations...)
		r.firstError = cmp.Or(r.firstError, c.firstError)
	})
	slices.Sort(durations)
	r.calls = len(durations)
	r.p50, r.p99 = durations[r.calls/2], durations[r.calls*99/100]
	lost := l.lost()
	var classes []string
	for _, class := range slices.Sorted(maps.Keys(lost)) {
		r.lost += lost[class]
		classes = append(classes, fmt.Sprintf("%s %d", class, lost[class]))
	}
	r.classes = strings.Join(classes, ", ")
	return r
}

// newCallFunc returns the function that all callers of a transport share.
func (d *drill) newCallFunc(via string, timeout time.Duration) callFunc {
	tel := kittest.Telemetry(d.T, io.Discard)
	if via == "grpc" {
		conn, err := grpcclient.New("dns:///"+d.host+":"+grpcPort, grpcclient.Options{Timeout: timeout, Telemetry: tel})
		require.NoError(d.T, err)
		d.Cleanup(func() { assert.NoError(d.T, conn.Close()) })
		return getFunc(backend.NewGRPC(conn, nil, timeout))
	}
	client := httpclient.New(httpclient.Options{Timeout: timeout, Telemetry: tel})
	d.Cleanup(client.CloseIdleConnections)
	base := url.URL{Scheme: "http", Host: net.JoinHostPort(d.host, httpPort)}
	if via == "POST" {
		return d.postFunc(client, base.JoinPath("api", "data").String())
	}
	return getFunc(backend.NewHTTP(client, base))
}

func getFunc(b backend.Backend) callFunc {
	return func() (served, lost, errText string) {
		data, _, err := b.Get(context.Background(), "drill")
		if err != nil {
			return "", string(call.ClassOf(err)), err.Error()
		}
		return data.GetServedBy().GetPod(), "", ""
	}
}

// postFunc makes calls that are not idempotent. service-b has no POST, so the status
// 405 means that it served the call.
func (d *drill) postFunc(client *http.Client, url string) callFunc {
	pods := map[string]string{}
	for _, b := range d.bs {
		pods[net.JoinHostPort(b.addr, httpPort)] = b.name
	}
	return func() (served, lost, errText string) {
		ctx := httptrace.WithClientTrace(context.Background(), &httptrace.ClientTrace{
			GotConn: func(got httptrace.GotConnInfo) { served = pods[got.Conn.RemoteAddr().String()] },
		})
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, strings.NewReader("drill"))
		if err != nil {
			return "", "other", err.Error()
		}
		resp, err := client.Do(req)
		if err != nil {
			return "", string(call.ClassOf(err)), err.Error()
		}
		_ = resp.Body.Close() // the client has read it whole
		if resp.StatusCode != http.StatusMethodNotAllowed {
			return "", resp.Status, resp.Status
		}
		return served, "", ""
	}
}
