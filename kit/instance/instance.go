// Package instance describes this process: its service, version, pod, node and zone.
// Responses, logs, traces and /health contain it.
package instance

import (
	"cmp"
	"net"
	"os"
	"runtime/debug"
)

// version is set by the build (-ldflags "-X …/kit/instance.version=v1.2.3").
var version string

// Instance is one running copy of a service. Unknown fields are empty; Service,
// Version and Pod never are.
type Instance struct {
	Service   string `json:"service"`
	Version   string `json:"version"`
	Pod       string `json:"pod"`
	Node      string `json:"node,omitempty"`
	Zone      string `json:"zone,omitempty"`
	Namespace string `json:"namespace,omitempty"`
	IP        string `json:"ip,omitempty"`
}

// Variables are the environment variables that New reads.
var Variables = []string{"POD_NAME", "NODE_NAME", "NODE_ZONE", "POD_NAMESPACE", "POD_IP"}

// New reads the variables that the pod's manifest sets by the Downward API: POD_NAME,
// NODE_NAME, NODE_ZONE, POD_NAMESPACE and POD_IP. Outside a pod, Pod is the host name
// and IP the host's first address.
func New(service string, environ map[string]string) Instance {
	host, _ := os.Hostname() // without a host name, the fallback below
	return Instance{
		Service:   service,
		Version:   Version(),
		Pod:       cmp.Or(environ["POD_NAME"], host, "unknown"),
		Node:      environ["NODE_NAME"],
		Zone:      environ["NODE_ZONE"],
		Namespace: environ["POD_NAMESPACE"],
		IP:        cmp.Or(environ["POD_IP"], hostIP()),
	}
}

// Version returns the version that the build set, otherwise the commit that Go
// recorded, otherwise "dev".
func Version() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" && len(s.Value) >= 12 {
				return s.Value[:12]
			}
		}
	}
	return "dev"
}

// hostIP returns the first address of this host that is not on loopback.
func hostIP() string {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return ""
	}
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && n.IP.IsGlobalUnicast() {
			return n.IP.String()
		}
	}
	return ""
}
