package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"example.com/tandem/kit/kittest"
	datav1 "example.com/tandem/proto/data/v1"
)

// impostor stands where service-b should, and does something else.
type impostor func(t *testing.T, l net.Listener)

// serving makes an impostor of an HTTP handler.
func serving(h http.HandlerFunc) impostor {
	return func(t *testing.T, l net.Listener) {
		server := &http.Server{Handler: h, ReadHeaderTimeout: time.Minute}
		go server.Serve(l) //nolint:errcheck // ends with Close
		t.Cleanup(func() { _ = server.Close() })
	}
}

// speaking makes an impostor of what it does with a connection. With it go its
// connections.
func speaking(speak func(*net.TCPConn)) impostor {
	return func(t *testing.T, l net.Listener) {
		go func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				context.AfterFunc(t.Context(), func() { _ = conn.Close() })
				go speak(conn.(*net.TCPConn))
			}
		}()
	}
}

// answering makes an impostor of what GetData does.
func answering(get func(context.Context) (*datav1.GetDataResponse, error)) impostor {
	return func(t *testing.T, l net.Listener) {
		server := grpc.NewServer()
		datav1.RegisterDataServiceServer(server, &impostorService{get: get})
		go server.Serve(l) //nolint:errcheck // ends with Stop
		t.Cleanup(server.Stop)
	}
}

type impostorService struct {
	datav1.UnimplementedDataServiceServer
	get func(context.Context) (*datav1.GetDataResponse, error)
}

func (s *impostorService) GetData(ctx context.Context, _ *datav1.GetDataRequest) (*datav1.GetDataResponse, error) {
	return s.get(ctx)
}

// reset breaks a connection off after what was asked, and after saying text.
func reset(text string) func(*net.TCPConn) {
	return func(c *net.TCPConn) {
		_, _ = c.Read(make([]byte, 4096))
		_, _ = io.WriteString(c, text)
		_ = c.SetLinger(0)
		_ = c.Close()
	}
}

var garbage = rand.Text()

func stall(c *net.TCPConn) { _, _ = io.Copy(io.Discard, c) }

// greet says what an HTTP/2 server begins with, an empty SETTINGS frame
// (RFC 9113, section 3.4), and then no more. To one that does not even say this
// there is no connection, and gRPC gives it up when a call's deadline passes too.
func greet(c *net.TCPConn) {
	_, _ = c.Write([]byte{0, 0, 0, 4, 0, 0, 0, 0, 0})
	stall(c)
}

func jsonAnswer(body func(io.Writer)) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		body(w)
	}
}

var huge = strings.Repeat("x", 10<<20)

// Each row is a way in which service-b fails. Callers learn which, within the
// deadline, and once service-b is there the next call works, with no restart.
func TestEveryFailureHasItsClassAndEndsWithItsCause(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		http, grpc impostor
		status     int
		class      string
	}{
		"down":    {nil, nil, 503, "refused"},
		"silent":  {speaking(stall), speaking(greet), 504, "timeout"},
		"slow":    {serving(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }), answering(func(ctx context.Context) (*datav1.GetDataResponse, error) { <-ctx.Done(); return nil, ctx.Err() }), 504, "timeout"},
		"garbage": {serving(jsonAnswer(func(w io.Writer) { _, _ = io.WriteString(w, garbage) })), answering(func(context.Context) (*datav1.GetDataResponse, error) { return &datav1.GetDataResponse{}, nil }), 502, "other"},
		"10 MB": {serving(jsonAnswer(func(w io.Writer) { _, _ = io.WriteString(w, huge) })), answering(func(context.Context) (*datav1.GetDataResponse, error) {
			return &datav1.GetDataResponse{Data: &datav1.Data{Message: huge}}, nil
		}), 502, "other"},
		"another error": {serving(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) }), answering(func(context.Context) (*datav1.GetDataResponse, error) { panic("not reached") }), 502, "other"},
		"breaking off":  {speaking(reset("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{\"data\"")), speaking(reset("")), 503, "unavailable"},
		"overloaded":    {serving(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(503) }), answering(unavailable), 503, "unavailable"},
	} {
		for i, via := range transports {
			act := []impostor{c.http, c.grpc}[i]
			if name == "another error" && via == "grpc" {
				act = func(t *testing.T, l net.Listener) { // a server that does not know the service
					server := grpc.NewServer()
					go server.Serve(l) //nolint:errcheck // ends with Stop
					t.Cleanup(server.Stop)
				}
			}
			t.Run(name+"/"+via, func(t *testing.T) {
				t.Parallel()
				addr := kittest.Loopbacks(t, 1)[0]
				names.Set(nameOf(t), addr)
				a := startA(t, nameOf(t), "CALL_TIMEOUT=1s")
				t.Run("while", func(t *testing.T) {
					if act != nil {
						l, err := net.Listen("tcp", net.JoinHostPort(addr, map[string]string{"http": httpPort, "grpc": grpcPort}[via]))
						require.NoError(t, err)
						t.Cleanup(func() { _ = l.Close() })
						act(t, l)
					}
					fails(t, a, via, c.status, c.class)
				})
				startB(t, "b-1", addr)
				recovers(t, a, via)
			})
		}
	}
}

func unavailable(context.Context) (*datav1.GetDataResponse, error) {
	return nil, status.Error(codes.Unavailable, "overloaded")
}

func TestAnUnknownNameHasItsClassAndEndsWhenItIsKnown(t *testing.T) {
	t.Parallel()
	for _, via := range transports {
		t.Run(via, func(t *testing.T) {
			t.Parallel()
			a := startA(t, nameOf(t))
			fails(t, a, via, 503, "dns")
			b := startB(t, "b-1", kittest.Loopbacks(t, 1)[0])
			names.Set(nameOf(t), b.addr)
			recovers(t, a, via)
		})
	}
}

// fails wants one call to fail in a certain way, within its deadline.
func fails(t *testing.T, a *kittest.Service, via string, want int, class string) {
	t.Helper()
	start := time.Now()
	code, header, got := data(t, a, "via="+via)
	took := time.Since(start)
	assert.Equal(t, want, code, got.Detail)
	assert.Equal(t, class, got.Class, got.Detail)
	assert.Equal(t, "application/problem+json", header.Get("Content-Type"))
	assert.Equal(t, via, got.Call.Transport, "what is known of the call comes along")
	assert.Contains(t, got.Detail, "service-b over "+via)
	if want == http.StatusServiceUnavailable {
		assert.Equal(t, "1", header.Get("Retry-After"))
	}
	// The deadline is 1 or 2 s; the rest is what a busy machine may take.
	assert.Less(t, took, 10*time.Second)
	code, _, _ = kittest.Get(t, a.URL+"/readyz")
	assert.Equal(t, http.StatusOK, code, "service-a itself is ready")
	_, _, health := kittest.Get(t, a.URL+"/health")
	assert.Contains(t, health, `"status":"warn"`)
}

// recovers wants calls to work again. gRPC may take the seconds that it waits
// before it connects, or asks DNS, once more.
func recovers(t *testing.T, a *kittest.Service, via string) {
	t.Helper()
	start := time.Now()
	kittest.Eventually(t, func() bool {
		code, _, _ := data(t, a, "via="+via)
		return code == http.StatusOK
	}, "recovers over "+via)
	t.Logf("answers again %s after service-b was ready", time.Since(start).Round(time.Millisecond))
}

// 1000 calls to a service-b that is down are little more than 1000 attempts.
func TestRetriesDoNotMakeAnOutageWorse(t *testing.T) {
	t.Parallel()
	for _, via := range transports {
		for name, act := range map[string]map[string]impostor{
			"refused":     {},
			"unavailable": {"http": serving(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(503) }), "grpc": answering(unavailable)},
		} {
			t.Run(via+"/"+name, func(t *testing.T) {
				t.Parallel()
				addr := kittest.Loopbacks(t, 1)[0]
				names.Set(nameOf(t), addr)
				if act[via] != nil {
					l, err := net.Listen("tcp", net.JoinHostPort(addr, map[string]string{"http": httpPort, "grpc": grpcPort}[via]))
					require.NoError(t, err)
					act[via](t, l)
				}
				got := spread(t, startA(t, nameOf(t)), via, 1000)
				t.Logf("%d attempts of 1000 calls", got.Attempts)
				assert.Empty(t, got.Pods)
				assert.LessOrEqual(t, got.Attempts, 1100)
				failed := 0
				for _, n := range got.Errors {
					failed += n
				}
				assert.Equal(t, 1000, failed, fmt.Sprint(got.Errors))
			})
		}
	}
}
