package grpcclient_test

import (
	"context"
	"fmt"
	"io"
	"math"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"example.com/tandem/kit/call"
	"example.com/tandem/kit/grpcclient"
	"example.com/tandem/kit/internal/echo"
	"example.com/tandem/kit/kittest"
)

// failing is a service whose first n calls fail with a code.
func failing(n int64, code codes.Code) (service echo.Echo, calls *atomic.Int64) {
	calls = new(atomic.Int64)
	return echo.Echo{Say: func(context.Context, string) (string, error) {
		if calls.Add(1) <= n {
			return "", status.Error(code, "not now")
		}
		return "served", nil
	}}, calls
}

// A method is retried if its .proto says that it is idempotent and a retry may
// succeed. There are at most three attempts.
func TestRetry_OnlyIdempotentMethods(t *testing.T) {
	for name, tt := range map[string]struct {
		method   string
		failures int64
		code     codes.Code
		attempts int
		class    call.Class
	}{
		"idempotent": {
			method: echo.Say, failures: 1, code: codes.Unavailable,
			attempts: 2, class: call.OK,
		},
		"not idempotent": {
			method: echo.Write, failures: 1, code: codes.Unavailable,
			attempts: 1, class: call.Unavailable,
		},
		"fails twice": {
			method: echo.Say, failures: 2, code: codes.Unavailable,
			attempts: 3, class: call.OK,
		},
		"fails three times": {
			method: echo.Say, failures: 3, code: codes.Unavailable,
			attempts: 3, class: call.Unavailable,
		},
		"internal error": {
			method: echo.Say, failures: 1, code: codes.Internal,
			attempts: 1, class: call.Other,
		},
		"invalid argument": {
			method: echo.Say, failures: 1, code: codes.InvalidArgument,
			attempts: 1, class: call.Other,
		},
		"permission denied": {
			method: echo.Say, failures: 1, code: codes.PermissionDenied,
			attempts: 1, class: call.Denied,
		},
		"unauthenticated": {
			method: echo.Say, failures: 1, code: codes.Unauthenticated,
			attempts: 1, class: call.Denied,
		},
		"deadline exceeded in the server": {
			method: echo.Say, failures: 1, code: codes.DeadlineExceeded,
			attempts: 2, class: call.OK,
		},
		"quota or message size": {
			method: echo.Say, failures: 1, code: codes.ResourceExhausted,
			attempts: 1, class: call.Other,
		},
	} {
		t.Run(name, func(t *testing.T) {
			service, calls := failing(tt.failures, tt.code)
			tel := kittest.Telemetry(t, io.Discard)
			conn := newClient(t, local(t, service), grpcclient.Options{Telemetry: tel})
			r := do(t.Context(), conn, tt.method)
			assert.Equal(t, tt.class, r.class, "%v", r.err)
			assert.Equal(t, tt.attempts, r.Attempts)
			assert.EqualValues(t, tt.attempts, calls.Load())
			if tt.class != call.OK {
				assert.Equal(t, tt.code, status.Code(r.err))
				require.ErrorContains(t, r.err, "not now")
			}
			assert.Contains(t, kittest.Scrape(t, tel),
				`client_calls_total{outcome="`+string(tt.class)+`",peer="127.0.0.1",transport="grpc"} 1`+"\n", "all attempts are one call")
		})
	}
}

// While every call fails, the budget limits attempts to 1.1 for each call.
func TestBudget_LimitsRetriesInOutage(t *testing.T) {
	const calls = 1000
	for name, tt := range map[string]struct {
		class  call.Class
		listen bool
	}{
		"unavailable": {class: call.Unavailable, listen: true},
		"refused":     {class: call.Refused},
	} {
		t.Run(name, func(t *testing.T) {
			host, port := unused(t)
			service, served := failing(calls*10, codes.Unavailable)
			if tt.listen {
				start(t, join(host, port), 0, service)
			}
			conn := newClient(t, "dns:///"+join(host, port), grpcclient.Options{})
			attempts := 0
			for range calls {
				r := say(t.Context(), conn)
				require.Equal(t, tt.class, r.class, "%v", r.err)
				attempts += r.Attempts
			}
			assert.LessOrEqual(t, attempts, calls*11/10)
			assert.Greater(t, attempts, calls, "calls are retried until the budget is spent")
			if tt.listen {
				assert.EqualValues(t, served.Load(), attempts)
			}
		})
	}
}

// Once the budget is spent, successful calls refill it.
func TestBudget_RefilledBySuccesses(t *testing.T) {
	var failing atomic.Bool
	conn := newClient(t, local(t, echo.Echo{Say: func(context.Context, string) (string, error) {
		if failing.Load() {
			return "", status.Error(codes.Unavailable, "not now")
		}
		return "", nil
	}}), grpcclient.Options{})
	attempts := func(fail bool, calls int) (last int) {
		failing.Store(fail)
		for range calls {
			last = say(t.Context(), conn).Attempts
		}
		return last
	}
	assert.Equal(t, 1, attempts(true, 20), "the budget is spent")
	assert.Equal(t, 1, attempts(false, 100))
	assert.Equal(t, 3, attempts(true, 1), "the budget is refilled")
}

// hanging is a service that responds after d. It sends the duration of each call to
// took.
func hanging(d time.Duration) (service echo.Echo, took chan time.Duration) {
	took = make(chan time.Duration, 1000)
	return echo.Echo{Say: func(ctx context.Context, _ string) (string, error) {
		begin := time.Now()
		defer func() { took <- time.Since(begin) }()
		select {
		case <-time.After(d):
			return "served", nil
		case <-ctx.Done():
			return "", ctx.Err()
		}
	}}, took
}

// An attempt at a silent pod ends after half of the time, and the retry goes to another
// pod. Both attempts are one call in the metrics.
func TestRetry_SilentPodTakesHalfTheTime(t *testing.T) {
	port, hosts := kittest.FreePort(), kittest.Loopbacks(t, 2)
	start(t, join(hosts[0], port), 0, echo.Echo{})
	names.Set("silent.test", hosts...)
	tel := kittest.Telemetry(t, io.Discard)
	conn := newClient(t, "dns:///silent.test:"+port, grpcclient.Options{Timeout: 2 * time.Second, Telemetry: tel})
	require.NoError(t, say(t.Context(), conn).err)
	service, took := hanging(time.Minute)
	start(t, join(hosts[1], port), 0, service)

	var r result
	calls := 1
	kittest.Eventually(t, func() bool {
		begin := time.Now()
		r = say(t.Context(), conn)
		require.NoError(t, r.err)
		assert.Less(t, time.Since(begin), 2*time.Second)
		calls++
		return r.Attempts > 1
	}, "a call reaches the silent pod")
	assert.Equal(t, call.BalancedByClient, r.BalancedBy)
	assert.Equal(t, join(hosts[0], port), r.Peer)
	assert.Equal(t, 2, r.Attempts)
	tries := r.Tries()
	require.Len(t, tries, 2)
	assert.Equal(t, join(hosts[1], port), tries[0].Peer)
	assert.Equal(t, call.Timeout, tries[0].Class)
	assert.Contains(t, tries[0].Reason, "DeadlineExceeded")
	assert.Equal(t, join(hosts[0], port), tries[1].Peer)
	assert.Equal(t, call.OK, tries[1].Class)
	assert.Empty(t, tries[1].Reason)
	assert.InDelta(t, time.Second, <-took, float64(200*time.Millisecond), "the attempt at the silent pod is canceled after half of the time")

	text := kittest.Scrape(t, tel)
	for _, line := range []string{
		fmt.Sprintf(`client_calls_total{outcome="ok",peer="silent.test",transport="grpc"} %d`, calls),
		fmt.Sprintf(`grpc_client_handled_total{grpc_code="OK",grpc_method="Say",grpc_service="kit.test.Echo",grpc_type="unary"} %d`, calls),
		`grpc_client_handled_total{grpc_code="DeadlineExceeded",grpc_method="Say",grpc_service="kit.test.Echo",grpc_type="unary"} 1`,
	} {
		assert.Contains(t, text, line+"\n")
	}
}

// If a pod becomes silent, the budget suffices to retry every call that was in flight.
func TestRetry_CoversCallsInFlight(t *testing.T) {
	const calls = 30
	var n atomic.Int64
	together := make(chan struct{})
	conn := newClient(t, local(t, echo.Echo{Say: func(ctx context.Context, _ string) (string, error) {
		switch i := n.Add(1); {
		case i < calls:
			<-together
		case i == calls:
			close(together) // so many succeed while in flight
		case i <= 2*calls:
			<-ctx.Done()
			return "", ctx.Err()
		}
		return "served", nil
	}}), grpcclient.Options{Timeout: 4 * time.Second})
	var all sync.WaitGroup
	for range calls {
		all.Go(func() { assert.NoError(t, say(t.Context(), conn).err) })
	}
	all.Wait()
	for range calls {
		all.Go(func() {
			r := say(t.Context(), conn)
			assert.NoError(t, r.err)
			assert.Equal(t, 2, r.Attempts)
		})
	}
	all.Wait()
	assert.EqualValues(t, 3*calls, n.Load())
}

// There are three attempts in all, whether they fail at once or time out.
func TestRetry_ThreeAttemptsInAll(t *testing.T) {
	var n atomic.Int64
	conn := newClient(t, local(t, echo.Echo{Say: func(ctx context.Context, _ string) (string, error) {
		if n.Add(1)%2 == 1 {
			<-ctx.Done()
			return "", ctx.Err()
		}
		return "", status.Error(codes.Unavailable, "not now")
	}}), grpcclient.Options{Timeout: 2 * time.Second})
	r := say(t.Context(), conn)
	assert.Equal(t, call.Timeout, r.class, "%v", r.err)
	assert.Equal(t, 3, r.Attempts)
	assert.EqualValues(t, 3, n.Load())
}

// If every attempt is silent, the call ends at its deadline. The first two attempts
// get half of the remaining time each, and the last attempt gets the rest.
func TestRetry_AllSilentEndsAtDeadline(t *testing.T) {
	service, took := hanging(time.Minute)
	conn := newClient(t, local(t, service), grpcclient.Options{Timeout: 2 * time.Second})
	begin := time.Now()
	r := say(t.Context(), conn)
	assert.InDelta(t, 2*time.Second, time.Since(begin), float64(200*time.Millisecond))
	assert.Equal(t, call.Timeout, r.class, "%v", r.err)
	assert.Equal(t, 3, r.Attempts)
	for _, want := range []time.Duration{time.Second, time.Second / 2, time.Second / 2} {
		assert.InDelta(t, want, <-took, float64(200*time.Millisecond))
	}
}

// A call that its caller canceled is not retried.
func TestRetry_NoneAfterCancel(t *testing.T) {
	service, took := hanging(time.Minute)
	conn := newClient(t, local(t, service), grpcclient.Options{Timeout: 2 * time.Second})
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	time.AfterFunc(50*time.Millisecond, cancel)
	r := say(ctx, conn)
	assert.Equal(t, call.Canceled, r.class, "%v", r.err)
	assert.Equal(t, 1, r.Attempts)
	assert.Less(t, <-took, aWhile)
}

// A call that is not idempotent gets all of the time for its only attempt.
func TestRetry_NotIdempotentHasAllTheTime(t *testing.T) {
	service, _ := hanging(time.Second)
	conn := newClient(t, local(t, service), grpcclient.Options{Timeout: 1500 * time.Millisecond})
	r := do(t.Context(), conn, echo.Write)
	require.NoError(t, r.err)
	assert.Equal(t, 1, r.Attempts)
}

// If every call needs more than half of its time, calls succeed once the budget is
// spent, because they then get all of the time. Their success does not refill the
// budget.
func TestBudget_SlowBackendGetsAllTheTime(t *testing.T) {
	service, _ := hanging(1600 * time.Millisecond)
	conn := newClient(t, local(t, service), grpcclient.Options{Timeout: 2400 * time.Millisecond})
	failures := 0
	for say(t.Context(), conn).err != nil {
		failures++
	}
	assert.LessOrEqual(t, failures, 7, "two retries for each call, of the ten in the budget and those that return over time")
	for range 2 {
		var all sync.WaitGroup
		for range 50 {
			all.Go(func() {
				r := say(t.Context(), conn)
				assert.NoError(t, r.err)
				assert.Equal(t, 1, r.Attempts)
			})
		}
		all.Wait()
	}
}

// A DEADLINE_EXCEEDED that the server itself returns, long before the caller's
// deadline, is retried within the budget and after a backoff, like any failure.
func TestRetry_ServersDeadlineUsesBudget(t *testing.T) {
	service, served := failing(1<<40, codes.DeadlineExceeded)
	conn := newClient(t, local(t, service), grpcclient.Options{Timeout: 2 * time.Second})
	const calls = 100
	for range calls {
		assert.Equal(t, call.Timeout, say(t.Context(), conn).class)
	}
	assert.LessOrEqual(t, served.Load(), int64(calls*115/100), "ten retries, and few after that")
}

// A retry waits as long as the server's RetryInfo says. If the wait would end after the
// deadline, there is no retry.
func TestRetry_HonoursRetryInfo(t *testing.T) {
	for name, tt := range map[string]struct {
		code     codes.Code
		delay    time.Duration
		timeout  time.Duration
		attempts int
	}{
		"shed": {
			code: codes.Unavailable, delay: 300 * time.Millisecond,
			timeout: time.Minute, attempts: 2,
		},
		"quota": {
			code: codes.ResourceExhausted, delay: 300 * time.Millisecond,
			timeout: time.Minute, attempts: 2,
		},
		"after the deadline": {
			code: codes.Unavailable, delay: time.Hour,
			timeout: time.Minute, attempts: 1,
		},
		"longest duration": {
			code: codes.Unavailable, delay: math.MaxInt64,
			timeout: time.Minute, attempts: 1,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var times []time.Time
			conn := newClient(t, local(t, echo.Echo{Say: func(context.Context, string) (string, error) {
				times = append(times, time.Now())
				if len(times) > 1 {
					return "served", nil
				}
				shed, err := status.New(tt.code, "too many requests").WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(tt.delay)})
				if err != nil {
					return "", err
				}
				return "", shed.Err()
			}}), grpcclient.Options{Timeout: tt.timeout})
			r := say(t.Context(), conn)
			assert.Equal(t, tt.attempts, r.Attempts, "%v", r.err)
			if len(times) > 1 {
				assert.GreaterOrEqual(t, times[1].Sub(times[0]), tt.delay)
			}
		})
	}
}

// An address that accepts calls and never responds fails few calls that are not
// idempotent: those that are pending until it is avoided.
func TestRetry_HungAddressCostsFewWrites(t *testing.T) {
	t.Parallel()
	port, hosts := kittest.FreePort(), kittest.Loopbacks(t, 3)
	var hung atomic.Bool
	for i, host := range hosts {
		start(t, join(host, port), 0, echo.Echo{Say: func(ctx context.Context, _ string) (string, error) {
			if i == 0 && hung.Load() {
				<-ctx.Done()
				return "", ctx.Err()
			}
			time.Sleep(5 * time.Millisecond)
			return "", nil
		}})
	}
	names.Set("hung.test", hosts...)
	conn := newClient(t, "dns:///hung.test:"+port, grpcclient.Options{Timeout: 2 * time.Second})
	awaitPods(t, conn, 3)

	hung.Store(true)
	const callers = 20
	var failed, calls atomic.Int64
	var all sync.WaitGroup
	until := time.Now().Add(5 * time.Second)
	for range callers {
		all.Go(func() {
			for time.Now().Before(until) {
				calls.Add(1)
				if do(t.Context(), conn, echo.Write).err != nil {
					failed.Add(1)
				}
			}
		})
	}
	all.Wait()
	assert.LessOrEqual(t, failed.Load(), int64(callers), "of %d calls: those in flight when the address hung", calls.Load())
	assert.Greater(t, calls.Load(), int64(500), "other calls are not delayed")
}

// Only the idempotency_level in the .proto makes a method retryable.
func TestIdempotent_ReadsContract(t *testing.T) {
	service, calls := failing(1, codes.Unavailable)
	conn := newClient(t, local(t, service), grpcclient.Options{})
	require.Error(t, do(t.Context(), conn, echo.Write).err)
	assert.EqualValues(t, 1, calls.Load())
	_, err := echo.Call(t.Context(), conn, "/kit.test.Nobody/Knows", "")
	assert.Equal(t, codes.Unimplemented, status.Code(err), "the method is in no .proto")
}
