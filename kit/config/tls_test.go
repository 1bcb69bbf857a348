package config_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"example.com/tandem/kit/config"
)

// What cannot work is an error at the start, not at the first call. (That it
// works where it can is tested with real handshakes in both clients.)
func TestClientTLS_RefusesBadFiles(t *testing.T) {
	empty := filepath.Join(t.TempDir(), "empty.pem")
	require.NoError(t, os.WriteFile(empty, nil, 0o600))
	for name, tt := range map[string]struct {
		tls config.ClientTLS
		err string
	}{
		"no CA file":          {tls: config.ClientTLS{CAFile: "/nowhere.pem"}, err: "no such file"},
		"CA file of nothing":  {tls: config.ClientTLS{CAFile: empty}, err: "no certificate found"},
		"certificate, no key": {tls: config.ClientTLS{CertFile: empty}, err: "both"},
		"key, no certificate": {tls: config.ClientTLS{KeyFile: empty}, err: "both"},
		"not a pair":          {tls: config.ClientTLS{CertFile: empty, KeyFile: empty}, err: "client certificate: "},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := tt.tls.Config()
			assert.ErrorContains(t, err, tt.err)
		})
	}
	none, err := config.ClientTLS{}.Config()
	require.NoError(t, err)
	assert.Nil(t, none.RootCAs, "the system's")
}
