package config_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"example.com/tandem/kit/config"
)

// Unusable files are an error at the start, not at the first call. (The packages
// of both clients test valid files with real handshakes.)
func TestClientTLS_RefusesBadFiles(t *testing.T) {
	empty := filepath.Join(t.TempDir(), "empty.pem")
	require.NoError(t, os.WriteFile(empty, nil, 0o600))
	for name, tt := range map[string]struct {
		tls config.ClientTLS
		err string
	}{
		"missing CA file":         {tls: config.ClientTLS{CAFile: "/nowhere.pem"}, err: "no such file"},
		"empty CA file":           {tls: config.ClientTLS{CAFile: empty}, err: "no certificate found"},
		"certificate without key": {tls: config.ClientTLS{CertFile: empty}, err: "both"},
		"key without certificate": {tls: config.ClientTLS{KeyFile: empty}, err: "both"},
		"invalid key pair":        {tls: config.ClientTLS{CertFile: empty, KeyFile: empty}, err: "client certificate: "},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := tt.tls.Config()
			assert.ErrorContains(t, err, tt.err)
		})
	}
	none, err := config.ClientTLS{}.Config()
	require.NoError(t, err)
	assert.Nil(t, none.RootCAs, "nil: the certificates of the system")
}
