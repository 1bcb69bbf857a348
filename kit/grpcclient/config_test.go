package grpcclient

import (
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestPeerIsTheHostOfATarget(t *testing.T) {
	for target, want := range map[string]string{
		"dns:///service-b-headless:9090":         "service-b-headless",
		"dns://10.0.0.10/service-b:9090":         "service-b",
		"service-b:9090":                         "service-b",
		"service-b":                              "service-b",
		"dns:///[::1]:9090":                      "::1",
		"dns:///service-b.ns.svc.cluster.local.": "service-b.ns.svc.cluster.local.",
	} {
		assert.Equal(t, want, peerName(target), target)
	}
}

func TestWhatIsListedIsRepeatable(t *testing.T) {
	idempotent := []string{"pkg.One/Get", "pkg.Two"}
	for method, want := range map[string]bool{
		"/pkg.One/Get":    true,
		"/pkg.One/GetAll": false,
		"/pkg.One/Put":    false,
		"/pkg.Two/Get":    true,
		"/pkg.Two2/Get":   false,
		"/Two/Get":        false,
	} {
		assert.Equal(t, want, repeatable(idempotent, method), method)
		assert.False(t, repeatable(nil, method), method)
	}
}
