package instance

import (
	"encoding/json"
	"net"
	"os"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestNew_ReadsDownwardAPI(t *testing.T) {
	got := New("service-b", map[string]string{
		"POD_NAME":      "service-b-7d",
		"NODE_NAME":     "node-1",
		"NODE_ZONE":     "westeurope-2",
		"POD_NAMESPACE": "tandem",
		"POD_IP":        "10.0.0.7",
	})
	assert.Equal(t, Instance{
		Service:   "service-b",
		Version:   Version(),
		Pod:       "service-b-7d",
		Node:      "node-1",
		Zone:      "westeurope-2",
		Namespace: "tandem",
		IP:        "10.0.0.7",
	}, got)
}

// Outside Kubernetes the host name and an address of the host are used. Unknown
// fields are omitted from the JSON.
func TestNew_FallsBackToHost(t *testing.T) {
	host, err := os.Hostname()
	require.NoError(t, err)
	got := New("service-b", map[string]string{"POD_NAME": ""})
	assert.Equal(t, host, got.Pod)
	assert.NotEmpty(t, got.Version)
	if got.IP != "" { // empty on a host without a network
		ip := net.ParseIP(got.IP)
		require.NotNil(t, ip, got.IP)
		assert.False(t, ip.IsLoopback(), "%s is not reachable from other hosts", ip)
	}

	text, err := json.Marshal(Instance{Service: "s", Version: "v", Pod: "p"})
	require.NoError(t, err)
	assert.JSONEq(t, `{"service":"s","version":"v","pod":"p"}`, string(text), "unknown fields are omitted")
}

func TestVersion_PrefersBuildFlag(t *testing.T) {
	t.Cleanup(func() { version = "" })
	assert.NotEmpty(t, Version())
	version = "v1.2.3"
	assert.Equal(t, "v1.2.3", Version())
}
