package e2e

import (
	"testing"

	"github.com/stretchr/testify/assert"
)

// Suffixes of a Service's name.
const (
	short     = ""
	qualified = "." + namespace
	full      = "." + namespace + ".svc.cluster.local"
	absolute  = full + "." // the resolver tries no search domains
)

// serviceURLs returns the URLs of service-b by transport: HTTP uses the virtual IP,
// gRPC the addresses of the pods.
func serviceURLs(suffix string) map[string]string {
	return map[string]string{
		"http": httpURL(serviceB+suffix, servicePort, "/health"),
		"grpc": grpcURL(headless + suffix),
	}
}

func TestNames_AllFormsResolve(t *testing.T) {
	c := connect(t)
	defer c.saveOnFailure(t)
	for _, suffix := range []string{short, qualified, full, absolute} {
		for _, via := range transports {
			c.requireReachable(t, namespace, fromServiceA, serviceURLs(suffix)[via])
		}
	}
}

// From another namespace, the short name does not resolve and the others do.
func TestNames_ShortNameFailsElsewhere(t *testing.T) {
	c := connect(t)
	defer c.saveOnFailure(t)
	other := c.createNamespace(t)
	c.allowIngressFrom(t, other)
	const pod = "caller"
	c.startCaller(t, other, pod, pod)
	for _, via := range transports {
		for _, suffix := range []string{qualified, full, absolute} {
			c.requireReachable(t, other, pod, serviceURLs(suffix)[via])
		}
		result := c.probe(other, pod, serviceURLs(short)[via], reachTimeout)
		assert.Equal(t, "dns", result.class, result.output)
		t.Logf("%s fails (%s)", serviceURLs(short)[via], result.class)
	}
}
