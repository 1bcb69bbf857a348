package httpclient_test

import (
	"net/http"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"example.com/tandem/kit/call"
	"example.com/tandem/kit/config"
	"example.com/tandem/kit/httpclient"
	"example.com/tandem/kit/kittest"
)

// Over TLS the client verifies the name that was called, though it connects to
// an address, and presents its own certificate.
func TestClient_VerifiesTLS(t *testing.T) {
	ca := kittest.NewCA(t)
	server := &http.Server{
		TLSConfig: ca.ServerConfig(t, "secure.test"),
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, _ = w.Write([]byte(r.TLS.PeerCertificates[0].Subject.CommonName))
		}),
	}
	host, port := kittest.ServeTLS(t, server)
	names.Set("secure.test", host)
	names.Set("other.test", host)

	cert, key := ca.Files(t, "caller")
	for name, tt := range map[string]struct {
		url   string
		tls   config.ClientTLS
		class call.Class
	}{
		"verified": {
			url: "https://secure.test:" + port,
			tls: config.ClientTLS{CAFile: ca.File, CertFile: cert, KeyFile: key},
		},
		"wrong name": {
			url:   "https://other.test:" + port,
			tls:   config.ClientTLS{CAFile: ca.File, CertFile: cert, KeyFile: key},
			class: call.Other,
		},
		"wrong name, ServerName set": {
			url: "https://other.test:" + port,
			tls: config.ClientTLS{CAFile: ca.File, CertFile: cert, KeyFile: key, ServerName: "secure.test"},
		},
		"unknown CA": {
			url:   "https://secure.test:" + port,
			tls:   config.ClientTLS{CertFile: cert, KeyFile: key},
			class: call.Other,
		},
		"no client certificate": {
			url:   "https://secure.test:" + port,
			tls:   config.ClientTLS{CAFile: ca.File},
			class: call.Other,
		},
	} {
		t.Run(name, func(t *testing.T) {
			settings, err := tt.tls.Config()
			require.NoError(t, err)
			r := get(t, newClient(t, httpclient.Options{TLS: settings}), tt.url)
			if tt.class != "" {
				assert.Equal(t, tt.class, r.class, "%v", r.err)
				assert.Equal(t, 1, r.Attempts, "not retried")
				return
			}
			require.NoError(t, r.err)
			assert.Equal(t, "caller", r.body)
		})
	}
}
