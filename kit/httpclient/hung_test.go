package httpclient_test

import (
	"crypto/tls"
	"net"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"example.com/tandem/kit/config"
	"example.com/tandem/kit/httpclient"
	"example.com/tandem/kit/kittest"
)

// An address that accepts and never responds costs requests that are not
// idempotent a handful, however many are made: the first are pending when the
// others begin to avoid it, and time out, which ejects it.
func TestClient_HungAddressCostsFewPosts(t *testing.T) {
	t.Parallel()
	port, hosts := kittest.FreePort(), kittest.Loopbacks(t, 3)
	var hung atomic.Bool
	for i, host := range hosts {
		pod(t, join(host, port), 0, func(w http.ResponseWriter, r *http.Request) {
			if i == 0 && hung.Load() {
				hang(w, r)
				return
			}
			time.Sleep(5 * time.Millisecond)
			ok(w, r)
		})
	}
	names.Set("hung.test", hosts...)
	client := newClient(t, httpclient.Options{Timeout: 2 * time.Second}) // the services' own
	post := func() error {
		return do(client, request(t, t.Context(), http.MethodPost, "http://hung.test:"+port, nil)).err
	}
	together(60, 20, func(int) { assert.NoError(t, post()) })

	hung.Store(true)
	var failed, calls atomic.Int64
	until := time.Now().Add(5 * time.Second)
	together(20, 20, func(int) {
		for time.Now().Before(until) {
			calls.Add(1)
			if post() != nil {
				failed.Add(1)
			}
		}
	})
	assert.LessOrEqual(t, failed.Load(), int64(20), "of %d: those in flight when it hung", calls.Load())
	assert.Greater(t, calls.Load(), int64(500), "the callers are not held up")
}

// A peer that switches protocols keeps the connection, which no deadline would
// end: the call fails at once.
func TestClient_RefusesSwitchedProtocols(t *testing.T) {
	url, _ := serve(t, func(_ int, w http.ResponseWriter, _ *http.Request) {
		breakOff("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n", false)(w, nil)
	})
	r := get(t, newClient(t, httpclient.Options{}), url)
	assert.ErrorContains(t, r.err, "switches protocols")
	assert.Equal(t, 1, r.Attempts)
}

// A pod that sheds everything while others have room fails no call: retries go
// elsewhere without its wait, and it is ejected.
func TestClient_ShedCallsGoElsewhere(t *testing.T) {
	port, hosts := kittest.FreePort(), kittest.Loopbacks(t, 3)
	var shed atomic.Int64
	for i, host := range hosts {
		pod(t, join(host, port), 0, func(w http.ResponseWriter, r *http.Request) {
			if i > 0 {
				ok(w, r)
				return
			}
			shed.Add(1)
			w.Header().Set("Retry-After", "30")
			w.WriteHeader(http.StatusServiceUnavailable)
		})
	}
	names.Set("sheds.test", hosts...)
	client := newClient(t, httpclient.Options{Timeout: 2 * time.Second})
	together(600, 10, func(int) {
		assert.Equal(t, http.StatusOK, get(t, client, "http://sheds.test:"+port).status)
	})
	assert.Less(t, shed.Load(), int64(50), "a third of 600 would be its share")
}

// An address whose TLS handshake hangs is ejected like one that never responds.
func TestClient_HungHandshakeCostsFewPosts(t *testing.T) {
	t.Parallel()
	port, hosts := kittest.FreePort(), kittest.Loopbacks(t, 2)
	hung, err := net.Listen("tcp", join(hosts[0], port)) // accepts, and never speaks
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, hung.Close()) })
	ca := kittest.NewCA(t)
	fine := &http.Server{TLSConfig: ca.ServerConfig(t, "handshake.test"), Handler: http.HandlerFunc(ok)}
	fine.TLSConfig.ClientAuth = tls.NoClientCert
	l, err := net.Listen("tcp", join(hosts[1], port))
	require.NoError(t, err)
	done := make(chan error, 1)
	go func() { done <- fine.ServeTLS(l, "", "") }()
	t.Cleanup(func() {
		assert.NoError(t, fine.Close())
		<-done //nolint:errcheck // http.ErrServerClosed
	})
	names.Set("handshake.test", hosts...)
	settings, err := config.ClientTLS{CAFile: ca.File}.Config()
	require.NoError(t, err)
	client := newClient(t, httpclient.Options{Timeout: 2 * time.Second, TLS: settings})

	var failed atomic.Int64
	together(200, 4, func(int) {
		if do(client, request(t, t.Context(), http.MethodPost, "https://handshake.test:"+port, nil)).err != nil {
			failed.Add(1)
		}
	})
	assert.LessOrEqual(t, failed.Load(), int64(6), "of 200")
}

// Behind a virtual IP, one pod of three that hangs or is down fails no call while
// the others serve: a retry takes a connection that has served, and not a new one,
// which may lead to the same pod.
func TestClient_RetriesOnServedConnections(t *testing.T) {
	for name, tt := range map[string]struct {
		bad http.HandlerFunc
	}{
		"hangs":         {bad: hang},
		"breaks it off": {bad: breakOff("", true)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var failing atomic.Bool
			serves := func(w http.ResponseWriter, r *http.Request) {
				time.Sleep(20 * time.Millisecond)
				ok(w, r)
			}
			a, _ := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) { serves(w, r) })
			b, _ := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) { serves(w, r) })
			bad, _ := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) {
				if failing.Load() {
					tt.bad(w, r)
				} else {
					serves(w, r)
				}
			})
			url := clusterIP(t, a, b, bad)
			client := newClient(t, httpclient.Options{Timeout: 2 * time.Second})
			together(100, 50, func(int) { assert.NoError(t, get(t, client, url).err) })
			failing.Store(true)
			var calls atomic.Int64
			until := time.Now().Add(4 * time.Second)
			together(50, 50, func(int) {
				for time.Now().Before(until) {
					calls.Add(1)
					r := get(t, client, url)
					assert.Equal(t, "ok", r.body, "%d attempts: %v", r.Attempts, r.err)
				}
			})
			t.Logf("%d calls", calls.Load())
		})
	}
}
