// Package instance says who this process is: callers see it in every answer,
// logs and traces carry it, and /health shows it.
package instance

import (
	"cmp"
	"net"
	"os"
	"runtime/debug"
)

// version is stamped by the build (-ldflags "-X …/kit/instance.version=v1.2.3").
var version string

// Instance is one running copy of a service. Fields that are not known are
// empty, except Service, Version and Pod, which always say something.
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

// New reads what the Downward API put into the environment: POD_NAME,
// NODE_NAME, NODE_ZONE, POD_NAMESPACE and POD_IP. At home, where no one sets
// them, the host's name stands for the pod and its first address for the IP.
func New(service string, environ map[string]string) Instance {
	host, _ := os.Hostname() // an unknown host name leaves the fallback below
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

// Version is the version that the build stamped, else the commit that Go
// recorded, else "dev".
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

// hostIP is the first address of this host that others could reach.
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
