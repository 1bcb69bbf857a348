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
	me := New("service-b", map[string]string{
		"POD_NAME": "service-b-7d", "NODE_NAME": "node-1", "NODE_ZONE": "westeurope-2", "POD_NAMESPACE": "tandem", "POD_IP": "10.0.0.7",
	})
	assert.Equal(t, Instance{
		Service: "service-b", Version: Version(), Pod: "service-b-7d", Node: "node-1", Zone: "westeurope-2", Namespace: "tandem", IP: "10.0.0.7",
	}, me)
}

func TestNew_FallsBackToHost(t *testing.T) {
	host, err := os.Hostname()
	require.NoError(t, err)
	me := New("service-b", map[string]string{"POD_NAME": ""})
	assert.Equal(t, host, me.Pod)
	assert.NotEmpty(t, me.Version)
	if me.IP != "" { // a host without a network has none
		ip := net.ParseIP(me.IP)
		require.NotNil(t, ip, me.IP)
		assert.False(t, ip.IsLoopback(), "other machines cannot connect to %s", ip)
	}

	text, err := json.Marshal(Instance{Service: "s", Version: "v", Pod: "p"})
	require.NoError(t, err)
	assert.JSONEq(t, `{"service":"s","version":"v","pod":"p"}`, string(text), "what is not known is left out")
}

func TestVersion_PrefersBuildFlag(t *testing.T) {
	t.Cleanup(func() { version = "" })
	assert.NotEmpty(t, Version())
	version = "v1.2.3"
	assert.Equal(t, "v1.2.3", Version())
}
