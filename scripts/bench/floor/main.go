// Floor is the least code that does what the pair does: raw net/http and grpc-go, with
// the same messages encoded and decoded. It has no logs, metrics, traces, retries,
// limits or timeouts, and is no example to copy. Bench compares the pair with it.
//
//	HTTP_ADDR=… GRPC_ADDR=… floor b
//	HTTP_ADDR=… SERVICE_B_HTTP_URL=… SERVICE_B_GRPC_TARGET=… floor a
package main

import (
	"fmt"
	"net"
	"net/http"
	"os"
)

func main() {
	err := fmt.Errorf("usage: floor a|b")
	switch mode := append(os.Args, "")[1]; mode {
	case "a":
		err = a(os.Getenv("HTTP_ADDR"), os.Getenv("SERVICE_B_HTTP_URL"), os.Getenv("SERVICE_B_GRPC_TARGET"))
	case "b":
		err = b(os.Getenv("HTTP_ADDR"), os.Getenv("GRPC_ADDR"))
	}
	fmt.Fprintln(os.Stderr, "floor:", err)
	os.Exit(1)
}

// me returns the host name and address, which responses show as pod and IP.
func me() (pod, ip string) {
	pod, _ = os.Hostname() // without a host name the bench rejects the response
	addrs, _ := net.InterfaceAddrs()
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && n.IP.IsGlobalUnicast() {
			return pod, n.IP.String()
		}
	}
	return pod, ""
}

func ready(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) }
