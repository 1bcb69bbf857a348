// Receiver is an OTLP receiver for the tests on a cluster: it listens for gRPC on port
// 4317 and for HTTP on port 4318, where GET /spans?trace=ID shows what it received.
package main

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"time"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/grpc"

	"example.com/tandem/kit/kittest/otlp"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "receiver:", err)
		os.Exit(1)
	}
}

// run serves until one of the servers fails, or the process is killed.
func run() error {
	received := &otlp.Receiver{}
	l, err := net.Listen("tcp", ":4317")
	if err != nil {
		return err
	}
	grpcServer := grpc.NewServer()
	collector.RegisterTraceServiceServer(grpcServer, received)
	httpServer := &http.Server{Addr: ":4318", Handler: received, ReadHeaderTimeout: 5 * time.Second}
	ended := make(chan error, 2)
	go func() { ended <- grpcServer.Serve(l) }()
	go func() { ended <- httpServer.ListenAndServe() }()
	return <-ended
}
