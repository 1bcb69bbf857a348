package call_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
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
)

var dns *kittest.DNS

func TestMain(m *testing.M) {
	dns = kittest.UseDNS()
	goleak.VerifyTestMain(m, goleak.IgnoreCurrent()) // the DNS server stays
}

// peer is a server that does one thing to every connection, once it has read a
// request from it.
func peer(t *testing.T, do func(*net.TCPConn)) string {
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
				do(conn.(*net.TCPConn))
			}
			_ = conn.Close() // do may have closed it
		}
	}()
	t.Cleanup(func() {
		require.NoError(t, l.Close())
		<-done
	})
	return l.Addr().String()
}

// get makes an HTTP request without package httpclient. Its time limit is for a hang only.
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
	defer resp.Body.Close() //nolint:errcheck // read whole below
	_, err = io.Copy(io.Discard, resp.Body)
	return err
}

func TestClassOf_RealFailures(t *testing.T) {
	soon := func() context.Context {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		t.Cleanup(cancel)
		return ctx
	}
	done := make(chan struct{})
	silent := peer(t, func(*net.TCPConn) { <-done })
	t.Cleanup(func() { close(done) })
	deaf, err := net.ListenPacket("udp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, deaf.Close()) })

	for _, c := range []struct {
		name string
		call func() error
		want call.Class
	}{
		{"a response", func() error {
			return get(t.Context(), peer(t, func(conn *net.TCPConn) { _, _ = io.WriteString(conn, "HTTP/1.1 204 No Content\r\n\r\n") }))
		}, call.OK},
		{"an unknown name", func() error { return get(t.Context(), "nobody.call.test.:80") }, call.DNS},
		{"a DNS server that fails", func() error {
			dns.Break(true)
			defer dns.Break(false)
			return get(t.Context(), "broken.call.test.:80")
		}, call.DNS},
		{"a DNS server without a response until the deadline", func() error {
			r := &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
				return net.Dial("udp", deaf.LocalAddr().String())
			}}
			_, err := r.LookupHost(soon(), "silent.call.test.")
			return err
		}, call.DNS},
		{"a closed port", func() error { return get(t.Context(), "127.0.0.1:"+kittest.FreePort()) }, call.Refused},
		{"a dial that times out", func() error {
			_, err := (&net.Dialer{Timeout: time.Nanosecond}).Dial("tcp", silent)
			return err
		}, call.Unavailable},
		{"no response until the deadline", func() error { return get(soon(), silent) }, call.Timeout},
		{"no response until the read deadline", func() error {
			conn, err := net.Dial("tcp", silent)
			require.NoError(t, err)
			defer conn.Close() //nolint:errcheck // its work is done
			require.NoError(t, conn.SetReadDeadline(time.Now().Add(time.Millisecond)))
			_, err = conn.Read(make([]byte, 1))
			return err
		}, call.Timeout},
		{"canceled before the dial", func() error {
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			return get(ctx, silent)
		}, call.Canceled},
		{"canceled while waiting", func() error {
			ctx, cancel := context.WithCancel(t.Context())
			return get(ctx, peer(t, func(*net.TCPConn) { cancel(); <-ctx.Done() }))
		}, call.Canceled},
		{"a connection reset", func() error {
			return get(t.Context(), peer(t, func(conn *net.TCPConn) { _ = conn.SetLinger(0) }))
		}, call.Unavailable},
		{"a connection closed before the response", func() error {
			return get(t.Context(), peer(t, func(*net.TCPConn) {}))
		}, call.Unavailable},
		{"a connection closed during the response", func() error {
			return get(t.Context(), peer(t, func(conn *net.TCPConn) {
				_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")
			}))
		}, call.Unavailable},
		{"a response that is not HTTP", func() error {
			return get(t.Context(), peer(t, func(conn *net.TCPConn) { _, _ = io.WriteString(conn, "220 mail.example ESMTP\r\n") }))
		}, call.Other},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := c.call()
			assert.Equal(t, c.want, call.ClassOf(err), "%v", err)
		})
	}
}

func TestClassOf_PrefersErrorInChain(t *testing.T) {
	inner := errors.New("the peer said no")
	err := fmt.Errorf("call: %w", &call.Error{Class: call.Unavailable, Err: fmt.Errorf("%w: %w", inner, context.Canceled)})
	assert.Equal(t, call.Unavailable, call.ClassOf(err), "the Error has the more specific class")
	require.ErrorIs(t, err, inner)
	assert.Equal(t, "call: the peer said no: context canceled", err.Error())
	assert.Equal(t, call.Other, call.ClassOf(inner))
}

func TestHTTPStatus_MatchesClassOfStatus(t *testing.T) {
	for class, status := range map[call.Class]int{
		call.OK: 200, call.DNS: 503, call.Refused: 503, call.Unavailable: 503, call.Timeout: 504, call.Canceled: 499, call.Other: 502, "unheard of": 502,
	} {
		assert.Equal(t, status, class.HTTPStatus(), class)
	}
	for status, class := range map[int]call.Class{
		200: call.OK, 304: call.OK, 404: call.OK, 499: call.OK, 500: call.Other, 501: call.Other, 502: call.Unavailable, 503: call.Unavailable, 504: call.Timeout, 599: call.Other,
	} {
		assert.Equal(t, class, call.ClassOfStatus(status), status)
	}
}

func TestWithRecord_IsForOneCall(t *testing.T) {
	ctx, r := call.WithRecord(t.Context())
	call.RecordOf(ctx).Attempts++
	inner, other := call.WithRecord(ctx)
	call.RecordOf(inner).Peer = "127.0.0.1:80"
	assert.Equal(t, call.Record{Attempts: 1}, *r)
	assert.Equal(t, call.Record{Peer: "127.0.0.1:80"}, *other, "a call within a call has its own")

	call.RecordOf(t.Context()).Attempts++ // must not panic
	assert.Zero(t, call.RecordOf(t.Context()).Attempts, "nor is it shared")
}

func TestNewCounter_IsShared(t *testing.T) {
	reg := prometheus.NewRegistry()
	first, second := call.NewCounter(reg), call.NewCounter(reg)
	first.Add("service-b", "http", call.OK)
	second.Add("service-b", "http", call.OK)
	second.Add("service-b", "grpc", call.Timeout)

	require.NoError(t, testutil.GatherAndCompare(reg, strings.NewReader(`
# HELP calls_total Calls to other services, by peer, transport and outcome.
# TYPE calls_total counter
calls_total{outcome="ok",peer="service-b",transport="http"} 2
calls_total{outcome="timeout",peer="service-b",transport="grpc"} 1
`)))
	problems, err := testutil.GatherAndLint(reg)
	require.NoError(t, err)
	assert.Empty(t, problems)
}
