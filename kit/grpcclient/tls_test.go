package grpcclient_test

import (
	"context"
	"net"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/peer"

	"example.com/tandem/kit/call"
	"example.com/tandem/kit/config"
	"example.com/tandem/kit/grpcclient"
	"example.com/tandem/kit/internal/echo"
	"example.com/tandem/kit/kittest"
)

// Over TLS the client verifies the name of its target, and presents its own
// certificate.
func TestClient_VerifiesTLS(t *testing.T) {
	ca := kittest.NewCA(t)
	server := grpc.NewServer(grpc.Creds(credentials.NewTLS(ca.ServerConfig(t, "secure.test"))))
	grpc_health_v1.RegisterHealthServer(server, health.NewServer())
	echo.Echo{Say: func(ctx context.Context, _ string) (string, error) {
		p, _ := peer.FromContext(ctx)
		return p.AuthInfo.(credentials.TLSInfo).State.PeerCertificates[0].Subject.CommonName, nil
	}}.Register(server)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	t.Cleanup(func() {
		server.Stop()
		assert.NoError(t, <-done)
	})
	host, port, err := net.SplitHostPort(l.Addr().String())
	require.NoError(t, err)
	names.Set("secure.test", host)
	names.Set("other.test", host)

	cert, key := ca.Files(t, "caller")
	for name, tt := range map[string]struct {
		target string
		tls    config.ClientTLS
		ok     bool
	}{
		"verified": {
			target: "dns:///secure.test:" + port, ok: true,
			tls: config.ClientTLS{CAFile: ca.File, CertFile: cert, KeyFile: key},
		},
		"wrong name": {
			target: "dns:///other.test:" + port,
			tls:    config.ClientTLS{CAFile: ca.File, CertFile: cert, KeyFile: key},
		},
		"wrong name, ServerName set": {
			target: "dns:///other.test:" + port, ok: true,
			tls: config.ClientTLS{CAFile: ca.File, CertFile: cert, KeyFile: key, ServerName: "secure.test"},
		},
		"unknown CA": {
			target: "dns:///secure.test:" + port,
			tls:    config.ClientTLS{CertFile: cert, KeyFile: key},
		},
		"no client certificate": {
			target: "dns:///secure.test:" + port,
			tls:    config.ClientTLS{CAFile: ca.File},
		},
	} {
		t.Run(name, func(t *testing.T) {
			settings, err := tt.tls.Config()
			require.NoError(t, err)
			r := say(t.Context(), newClient(t, tt.target, grpcclient.Options{TLS: settings}))
			if tt.ok {
				require.NoError(t, r.err)
				assert.Equal(t, "caller", r.text)
			} else {
				assert.Equal(t, call.Unavailable, r.class, "%v", r.err)
			}
		})
	}
}
