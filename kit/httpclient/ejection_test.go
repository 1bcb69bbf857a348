package httpclient_test

import (
	"crypto/tls"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"example.com/tandem/kit/config"
	"example.com/tandem/kit/httpclient"
	"example.com/tandem/kit/kittest"
)

// An address that fails or is silent gets few calls, and no call fails, while another
// address responds.
func TestClient_EjectsFailingAddress(t *testing.T) {
	for name, faulty := range map[string]http.HandlerFunc{"503": status(503), "silent": hang} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			const calls = 100
			port, hosts := kittest.FreePort(), kittest.Loopbacks(t, 2)
			var requests atomic.Int64
			pod(t, join(hosts[0], port), 0, func(w http.ResponseWriter, r *http.Request) {
				requests.Add(1)
				faulty(w, r)
			})
			pod(t, join(hosts[1], port), time.Nanosecond, ok) // a connection for each call
			target := "faulty-" + strings.ToLower(name) + ".test"
			names.Set(target, hosts...)
			client := newClient(t, httpclient.Options{Timeout: 2 * time.Second})
			for range calls {
				r := get(t, client, "http://"+target+":"+port)
				assert.Equal(t, "ok", r.body, "%v", r.err)
			}
			assert.LessOrEqual(t, requests.Load(), int64(6), "five failures eject the address")
		})
	}
}

// An address that accepts requests and never responds fails few requests that are not
// idempotent. The first ones are pending there, so that others avoid the address; when
// they time out, the address is ejected.
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
	client := newClient(t, httpclient.Options{Timeout: 2 * time.Second}) // the default of the services
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
	assert.LessOrEqual(t, failed.Load(), int64(20), "of %d calls: those in flight when the address hung", calls.Load())
	assert.Greater(t, calls.Load(), int64(500), "other calls are not delayed")
}

// A pod that sheds every call fails none while other pods respond: retries go to other
// pods without waiting for Retry-After, and the pod is ejected.
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
	assert.Less(t, shed.Load(), int64(50), "of 600 calls, a third of which is its share")
}

// An address whose TLS handshake hangs is ejected, like one that never responds.
func TestClient_HungHandshakeCostsFewPosts(t *testing.T) {
	t.Parallel()
	port, hosts := kittest.FreePort(), kittest.Loopbacks(t, 2)
	hung, err := net.Listen("tcp", join(hosts[0], port)) // accepts connections and sends nothing
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, hung.Close()) })
	ca := kittest.NewCA(t)
	healthy := &http.Server{TLSConfig: ca.ServerConfig(t, "handshake.test"), Handler: http.HandlerFunc(ok)}
	healthy.TLSConfig.ClientAuth = tls.NoClientCert
	l, err := net.Listen("tcp", join(hosts[1], port))
	require.NoError(t, err)
	done := make(chan error, 1)
	go func() { done <- healthy.ServeTLS(l, "", "") }()
	t.Cleanup(func() {
		assert.NoError(t, healthy.Close())
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
