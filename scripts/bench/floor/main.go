// Floor is the least code that does what the pair does: raw net/http and
// grpc-go, the same messages decoded and encoded, and nothing else. It logs,
// counts, traces, retries and limits nothing. Bench measures the pair beside it.
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

// me says who serves, as the pair says it.
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
