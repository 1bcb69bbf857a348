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

// Each case is a way in which service-b fails. The call fails with the status and
// class of that failure, within the deadline. When service-b works again, calls
// succeed without a restart of service-a.
func TestFailure_HasClassAndRecovers(t *testing.T) {
	t.Parallel()
	garbage, huge := rand.Text(), strings.Repeat("x", 10<<20)
	for name, c := range map[string]struct {
		http, grpc fakeServer // nil: nothing listens
		status     int
		class      string
	}{
		"down": {status: 503, class: "refused"},
		"silent": {
			http:   fakeTCP(discard),
			grpc:   fakeTCP(sendSettings),
			status: 504,
			class:  "timeout",
		},
		"slow": {
			http: fakeHTTP(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }),
			grpc: fakeGRPC(func(ctx context.Context) (*datav1.GetDataResponse, error) {
				<-ctx.Done()
				return nil, ctx.Err()
			}),
			status: 504,
			class:  "timeout",
		},
		"garbage": {
			http:   fakeHTTP(respondJSON(garbage)),
			grpc:   fakeGRPC(func(context.Context) (*datav1.GetDataResponse, error) { return &datav1.GetDataResponse{}, nil }),
			status: 502,
			class:  "other",
		},
		"10 MB": {
			http: fakeHTTP(respondJSON(huge)),
			grpc: fakeGRPC(func(context.Context) (*datav1.GetDataResponse, error) {
				return &datav1.GetDataResponse{Data: &datav1.Data{Message: huge}}, nil
			}),
			status: 502,
			class:  "other",
		},
		"another error": {
			http:   fakeHTTP(respondStatus(500)),
			grpc:   serveGRPC(func(*grpc.Server) {}), // no service is registered
			status: 502,
			class:  "other",
		},
		"denied": {
			http: fakeHTTP(respondStatus(403)),
			grpc: fakeGRPC(func(context.Context) (*datav1.GetDataResponse, error) {
				return nil, status.Error(codes.PermissionDenied, "RBAC: access denied")
			}),
			status: 502,
			class:  "denied",
		},
		"connection reset": {
			http:   fakeTCP(reset("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{\"data\"")),
			grpc:   fakeTCP(reset("")),
			status: 503,
			class:  "unavailable",
		},
		"overloaded": {
			http:   fakeHTTP(respondStatus(503)),
			grpc:   fakeGRPC(returnUnavailable),
			status: 503,
			class:  "unavailable",
		},
	} {
		for via, fake := range map[string]fakeServer{"http": c.http, "grpc": c.grpc} {
			t.Run(name+"/"+via, func(t *testing.T) {
				t.Parallel()
				addr := kittest.Loopbacks(t, 1)[0]
				dns.Set(hostOf(t), addr)
				a := startA(t, hostOf(t), "CALL_TIMEOUT=1s")
				t.Run("while it fails", func(t *testing.T) { // the fake server stops at the end of this subtest
					fake.start(t, addr, via)
					requireFailure(t, a, via, c.status, c.class)
				})
				startB(t, "b-1", addr)
				awaitRecovery(t, a, via)
			})
		}
	}
}

// A name without an address has class dns. When DNS has an address, calls succeed.
func TestFailure_UnknownNameRecovers(t *testing.T) {
	t.Parallel()
	for _, via := range transports {
		t.Run(via, func(t *testing.T) {
			t.Parallel()
			a := startA(t, hostOf(t))
			requireFailure(t, a, via, 503, "dns")
			b := startB(t, "b-1", kittest.Loopbacks(t, 1)[0])
			dns.Set(hostOf(t), b.addr)
			awaitRecovery(t, a, via)
		})
	}
}

// 1000 calls to a service-b that is down make at most 1100 attempts.
func TestRetries_AreBoundedInAnOutage(t *testing.T) {
	t.Parallel()
	for _, via := range transports {
		for name, fakes := range map[string]map[string]fakeServer{
			"refused":     {},
			"unavailable": {"http": fakeHTTP(respondStatus(503)), "grpc": fakeGRPC(returnUnavailable)},
		} {
			t.Run(via+"/"+name, func(t *testing.T) {
				t.Parallel()
				addr := kittest.Loopbacks(t, 1)[0]
				dns.Set(hostOf(t), addr)
				fakes[via].start(t, addr, via)
				got := getSpread(t, startA(t, hostOf(t)), via, 1000)
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

// requireFailure makes one call, which must fail with this status and class
// within the deadline. service-a stays ready, and /health reports a warning.
func requireFailure(t *testing.T, a *kittest.Service, via string, want int, class string) {
	t.Helper()
	start := time.Now()
	code, header, got := getData(t, a, "via="+via)
	took := time.Since(start)
	assert.Equal(t, want, code, got.Detail)
	assert.Equal(t, class, got.Class, got.Detail)
	assert.Equal(t, "application/problem+json", header.Get("Content-Type"))
	assert.Equal(t, via, got.Call.Transport, "the problem describes the call")
	assert.Contains(t, got.Detail, "service-b over "+via)
	if want == http.StatusServiceUnavailable {
		assert.Equal(t, "1", header.Get("Retry-After"))
	}
	// The deadline is 1 or 2 s. The rest allows for a busy machine.
	assert.Less(t, took, 10*time.Second)
	code, _, _ = kittest.Get(t, a.URL+"/readyz")
	assert.Equal(t, http.StatusOK, code, "service-a is ready")
	_, _, health := kittest.Get(t, a.URL+"/health")
	assert.Contains(t, health, `"status":"warn"`)
}

// awaitRecovery waits until a call succeeds. Over gRPC that takes as long as the
// backoff before the client connects, or resolves the name, again.
func awaitRecovery(t *testing.T, a *kittest.Service, via string) {
	t.Helper()
	start := time.Now()
	kittest.Eventually(t, func() bool {
		code, _, _ := getData(t, a, "via="+via)
		return code == http.StatusOK
	}, "a call over "+via+" succeeds")
	t.Logf("a call succeeded %s after service-b was ready", time.Since(start).Round(time.Millisecond))
}

// fakeServer serves a listener in place of service-b, until the test ends.
type fakeServer func(t *testing.T, l net.Listener)

// start listens at the port of the transport and serves. A nil fakeServer does
// nothing, so connections are refused.
func (f fakeServer) start(t *testing.T, addr, via string) {
	t.Helper()
	if f == nil {
		return
	}
	l, err := net.Listen("tcp", net.JoinHostPort(addr, map[string]string{"http": httpPort, "grpc": grpcPort}[via]))
	require.NoError(t, err)
	t.Cleanup(func() { _ = l.Close() })
	f(t, l)
}

func fakeHTTP(h http.HandlerFunc) fakeServer {
	return func(t *testing.T, l net.Listener) {
		server := &http.Server{Handler: h, ReadHeaderTimeout: time.Minute}
		go server.Serve(l) //nolint:errcheck // ends with Close
		t.Cleanup(func() { _ = server.Close() })
	}
}

func respondStatus(status int) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) }
}

func respondJSON(body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, body)
	}
}

// fakeGRPC serves DataService with this GetData.
func fakeGRPC(get func(context.Context) (*datav1.GetDataResponse, error)) fakeServer {
	return serveGRPC(func(server *grpc.Server) {
		datav1.RegisterDataServiceServer(server, &fakeDataService{get: get})
	})
}

func serveGRPC(register func(*grpc.Server)) fakeServer {
	return func(t *testing.T, l net.Listener) {
		server := grpc.NewServer()
		register(server)
		go server.Serve(l) //nolint:errcheck // ends with Stop
		t.Cleanup(server.Stop)
	}
}

type fakeDataService struct {
	datav1.UnimplementedDataServiceServer
	get func(context.Context) (*datav1.GetDataResponse, error)
}

func (s *fakeDataService) GetData(ctx context.Context, _ *datav1.GetDataRequest) (*datav1.GetDataResponse, error) {
	return s.get(ctx)
}

func returnUnavailable(context.Context) (*datav1.GetDataResponse, error) {
	return nil, status.Error(codes.Unavailable, "overloaded")
}

// fakeTCP calls handle for each connection. It closes the connections when the
// test ends.
func fakeTCP(handle func(*net.TCPConn)) fakeServer {
	return func(t *testing.T, l net.Listener) {
		go func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				context.AfterFunc(t.Context(), func() { _ = conn.Close() })
				go handle(conn.(*net.TCPConn))
			}
		}()
	}
}

// discard reads and never responds.
func discard(c *net.TCPConn) { _, _ = io.Copy(io.Discard, c) }

// sendSettings sends the empty SETTINGS frame with which an HTTP/2 server begins
// (RFC 9113, section 3.4), and then nothing more. Without this frame gRPC has no
// connection, and gives up on it when a call's deadline passes.
func sendSettings(c *net.TCPConn) {
	_, _ = c.Write([]byte{0, 0, 0, 4, 0, 0, 0, 0, 0})
	discard(c)
}

// reset reads a request, sends text, and resets the connection.
func reset(text string) func(*net.TCPConn) {
	return func(c *net.TCPConn) {
		_, _ = c.Read(make([]byte, 4096))
		_, _ = io.WriteString(c, text)
		_ = c.SetLinger(0)
		_ = c.Close()
	}
}
