package call_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"example.com/tandem/kit/call"
	"example.com/tandem/kit/kittest"
	"example.com/tandem/kit/retry"
)

var dns *kittest.DNS

func TestMain(m *testing.M) {
	dns = kittest.UseDNS()
	goleak.VerifyTestMain(m, goleak.IgnoreCurrent()) // the DNS server is not stopped
}

// peer starts a server that reads one request from each connection, calls handle and
// closes the connection. It returns the server's address.
func peer(t *testing.T, handle func(*net.TCPConn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			if _, err := http.ReadRequest(bufio.NewReader(conn)); err == nil {
				handle(conn.(*net.TCPConn))
			}
			_ = conn.Close() // fails if handle has closed the connection
		}
	}()
	t.Cleanup(func() {
		require.NoError(t, l.Close())
		<-done
	})
	return l.Addr().String()
}

// get requests / and reads the whole response. The timeout only ends a call that hangs.
func get(ctx context.Context, hostport string) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+hostport+"/", nil)
	if err != nil {
		return err
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close() //nolint:errcheck // the body is read to its end
	_, err = io.Copy(io.Discard, resp.Body)
	return err
}

// The errors are those that the standard library returns for real failures.
func TestClassOf_RealFailures(t *testing.T) {
	shortDeadline := func() context.Context {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		t.Cleanup(cancel)
		return ctx
	}
	done := make(chan struct{})
	silent := peer(t, func(*net.TCPConn) { <-done })
	t.Cleanup(func() { close(done) })
	silentDNS, err := net.ListenPacket("udp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, silentDNS.Close()) })

	for _, c := range []struct {
		name string
		call func() error
		want call.Class
	}{
		{
			name: "response",
			call: func() error {
				return get(t.Context(), peer(t, func(conn *net.TCPConn) {
					_, _ = io.WriteString(conn, "HTTP/1.1 204 No Content\r\n\r\n")
				}))
			},
			want: call.OK,
		},
		{
			name: "name that does not exist",
			call: func() error { return get(t.Context(), "nobody.call.test.:80") },
			want: call.DNS,
		},
		{
			name: "failing DNS server",
			call: func() error {
				dns.Break(true)
				defer dns.Break(false)
				return get(t.Context(), "broken.call.test.:80")
			},
			want: call.DNS,
		},
		{
			name: "no DNS response before the deadline",
			call: func() error {
				r := &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
					return net.Dial("udp", silentDNS.LocalAddr().String())
				}}
				_, err := r.LookupHost(shortDeadline(), "silent.call.test.")
				return err
			},
			want: call.DNS,
		},
		{
			name: "closed port",
			call: func() error { return get(t.Context(), "127.0.0.1:"+kittest.FreePort()) },
			want: call.Refused,
		},
		{
			name: "dial timeout",
			call: func() error {
				_, err := (&net.Dialer{Timeout: time.Nanosecond}).Dial("tcp", silent)
				return err
			},
			want: call.Unavailable,
		},
		{
			name: "no response before the deadline",
			call: func() error { return get(shortDeadline(), silent) },
			want: call.Timeout,
		},
		{
			name: "no response before the read deadline",
			call: func() error {
				conn, err := net.Dial("tcp", silent)
				require.NoError(t, err)
				defer conn.Close() //nolint:errcheck // nothing was written
				require.NoError(t, conn.SetReadDeadline(time.Now().Add(time.Millisecond)))
				_, err = conn.Read(make([]byte, 1))
				return err
			},
			want: call.Timeout,
		},
		{
			name: "canceled before the dial",
			call: func() error {
				ctx, cancel := context.WithCancel(t.Context())
				cancel()
				return get(ctx, silent)
			},
			want: call.Canceled,
		},
		{
			name: "canceled while waiting for the response",
			call: func() error {
				ctx, cancel := context.WithCancel(t.Context())
				return get(ctx, peer(t, func(conn *net.TCPConn) {
					cancel()
					_, _ = conn.Read(make([]byte, 1)) // until the client has closed the connection, so that it sees no EOF first
				}))
			},
			want: call.Canceled,
		},
		{
			name: "connection reset",
			call: func() error {
				return get(t.Context(), peer(t, func(conn *net.TCPConn) { _ = conn.SetLinger(0) }))
			},
			want: call.Unavailable,
		},
		{
			name: "connection closed before the response",
			call: func() error { return get(t.Context(), peer(t, func(*net.TCPConn) {})) },
			want: call.Unavailable,
		},
		{
			name: "connection closed within the response",
			call: func() error {
				return get(t.Context(), peer(t, func(conn *net.TCPConn) {
					_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")
				}))
			},
			want: call.Unavailable,
		},
		{
			name: "response that is not HTTP",
			call: func() error {
				return get(t.Context(), peer(t, func(conn *net.TCPConn) {
					_, _ = io.WriteString(conn, "220 mail.example ESMTP\r\n")
				}))
			},
			want: call.Other,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := c.call()
			assert.Equal(t, c.want, call.ClassOf(err), "%v", err)
		})
	}
}

// The class of an Error takes precedence over the class of its cause.
func TestClassOf_PrefersErrorInChain(t *testing.T) {
	cause := errors.New("no capacity")
	err := fmt.Errorf("call: %w", &call.Error{Class: call.Unavailable, Err: fmt.Errorf("%w: %w", cause, context.Canceled)})
	assert.Equal(t, call.Unavailable, call.ClassOf(err), "not the class of context.Canceled")
	require.ErrorIs(t, err, cause)
	assert.Equal(t, "call: no capacity: context canceled", err.Error())
	assert.Equal(t, call.Other, call.ClassOf(cause))
}

func TestHTTPStatus_MatchesClassOfStatus(t *testing.T) {
	for class, status := range map[call.Class]int{
		call.OK:          200,
		call.DNS:         503,
		call.Refused:     503,
		call.Unavailable: 503,
		call.Timeout:     504,
		call.Token:       503,
		call.Canceled:    499,
		call.Denied:      502,
		call.Other:       502,
		"unknown":        502,
	} {
		assert.Equal(t, status, class.HTTPStatus(), class)
	}
	for status, class := range map[int]call.Class{
		200: call.OK,
		304: call.OK,
		401: call.Denied,
		403: call.Denied,
		404: call.OK,
		499: call.OK,
		500: call.Other,
		501: call.Other,
		502: call.Unavailable,
		503: call.Unavailable,
		504: call.Timeout,
		599: call.Other,
	} {
		assert.Equal(t, class, call.ClassOfStatus(status), status)
	}
}

// A call within a call has a record of its own. Without WithRecord, RecordOf returns
// a new record each time.
func TestWithRecord_IsForOneCall(t *testing.T) {
	ctx, outerRecord := call.WithRecord(t.Context())
	call.RecordOf(ctx).Attempts++
	inner, innerRecord := call.WithRecord(ctx)
	call.RecordOf(inner).Peer = "127.0.0.1:80"
	assert.Equal(t, call.Record{Attempts: 1}, *outerRecord)
	assert.Equal(t, call.Record{Peer: "127.0.0.1:80"}, *innerRecord)

	call.RecordOf(t.Context()).Attempts++ // does not panic
	assert.Zero(t, call.RecordOf(t.Context()).Attempts, "not shared")
}

// Counters of one registry share their metric.
func TestNewCounter_IsShared(t *testing.T) {
	reg := prometheus.NewRegistry()
	first, second := call.NewCounter(reg), call.NewCounter(reg)
	first.Add("service-b", "http", call.OK)
	second.Add("service-b", "http", call.OK)
	second.Add("service-b", "grpc", call.Timeout)

	require.NoError(t, testutil.GatherAndCompare(reg, strings.NewReader(`
# HELP client_calls_total Calls to other services, by peer, transport and outcome.
# TYPE client_calls_total counter
client_calls_total{outcome="ok",peer="service-b",transport="http"} 2
client_calls_total{outcome="timeout",peer="service-b",transport="grpc"} 1
`)))
	problems, err := testutil.GatherAndLint(reg)
	require.NoError(t, err)
	assert.Empty(t, problems)
}

// A name with a single address is balanced by what is behind the address. A ClusterIP
// of both families has one address of each.
func TestBalancerOf_CountsAddresses(t *testing.T) {
	for _, tt := range []struct {
		addrs []string
		want  call.Balancer
	}{
		{nil, ""},
		{[]string{"10.0.0.1:80"}, call.BalancedByNetwork},
		{[]string{"[fd00::1]:80"}, call.BalancedByNetwork},
		{[]string{"10.0.0.1:80", "[fd00::1]:80"}, call.BalancedByNetwork},
		{[]string{"10.0.0.1:80", "10.0.0.2:80"}, call.BalancedByClient},
		{[]string{"[fd00::1]:80", "[fd00::2]:80"}, call.BalancedByClient},
		{[]string{"10.0.0.1:80", "10.0.0.2:80", "[fd00::1]:80"}, call.BalancedByClient},
	} {
		assert.Equal(t, tt.want, call.BalancerOf(tt.addrs), "%v", tt.addrs)
	}
}

// Failures has every constant of type Class but OK: a class that it lacks would not be
// counted.
func TestFailures_HasEveryClass(t *testing.T) {
	source, err := os.ReadFile("call.go")
	require.NoError(t, err)
	var classes []call.Class
	for _, m := range regexp.MustCompile(`(?m)^\t\w+ +Class += "(\w+)"`).FindAllSubmatch(source, -1) {
		classes = append(classes, call.Class(m[1]))
	}
	assert.Equal(t, classes, append([]call.Class{call.OK}, call.Failures[:]...))
}

func TestShorten_KeepsWholeCharacters(t *testing.T) {
	for text, want := range map[string]string{
		"four":    "four",
		"fours":   "four…",
		"fouré":   "four…",
		"foué":    "fou…", // é has two bytes
		"\xff":    "\ufffd",
		"\xffabc": "\ufffda…",
	} {
		assert.Equal(t, want, call.Shorten(text, 4), "%q", text)
	}
}

// A Record keeps the attempts of a call in order, and a bounded text of each failure.
func TestTried_IsBounded(t *testing.T) {
	var r call.Record
	assert.Empty(t, r.Tries())
	r.Tried("127.0.0.1:80", 1500*time.Microsecond, call.Unavailable, errors.New(strings.Repeat("é", 1000)+"\xff"))
	for range 9 {
		r.Tried("127.0.0.2:80", time.Millisecond, call.OK, nil)
	}
	assert.Equal(t, 10, r.Attempts)
	tries := r.Tries()
	require.Len(t, tries, retry.MaxAttempts)
	assert.Equal(t, call.Try{Peer: "127.0.0.1:80", DurationMS: 1.5, Class: call.Unavailable, Reason: strings.Repeat("é", 150) + "…"}, tries[0])
	assert.Equal(t, call.Try{Peer: "127.0.0.2:80", DurationMS: 1, Class: call.OK}, tries[2])
	assert.Zero(t, testing.AllocsPerRun(100, func() {
		r.Attempts = 0
		r.Tried("127.0.0.1:80", time.Millisecond, call.OK, nil)
	}))
}
