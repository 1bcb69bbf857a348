package grpcserver_test

import (
	"context"
	"io"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"example.com/tandem/kit/grpcserver"
	"example.com/tandem/kit/health"
	"example.com/tandem/kit/instance"
	"example.com/tandem/kit/internal/echo"
	"example.com/tandem/kit/kittest"
	"example.com/tandem/kit/limiter"
)

// BenchmarkServer measures calls of 50 concurrent callers over one connection, each
// call with a deadline of 2 s. cpu-ns/op is the CPU time of server and client; other
// load on the machine changes it less than the elapsed time.
func BenchmarkServer(b *testing.B) {
	s := grpcserver.New(grpcserver.Options{
		AddrVar: "GRPC_ADDR", Addr: "127.0.0.1:0", Telemetry: kittest.Telemetry(b, io.Discard), Health: health.New(instance.Instance{}),
		Limiter: limiter.New(512, prometheus.NewRegistry()),
	})
	echo.Echo{}.Register(s)
	require.NoError(b, s.Listen())
	go s.Serve() //nolint:errcheck // ends with Stop
	defer s.Stop()
	conn, err := grpc.NewClient("dns:///"+s.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(b, err)
	defer conn.Close() //nolint:errcheck // no call is in flight

	call := func() {
		ctx, cancel := context.WithTimeout(b.Context(), 2*time.Second)
		defer cancel()
		if _, err := echo.Call(ctx, conn, echo.Say, "hello"); err != nil {
			b.Error(err)
		}
	}
	call()
	b.ReportAllocs()
	before := cpuTime(b)
	b.ResetTimer()
	var wg sync.WaitGroup
	next := make(chan struct{}, 1024)
	for range 50 {
		wg.Go(func() {
			for range next {
				call()
			}
		})
	}
	for range b.N {
		next <- struct{}{}
	}
	close(next)
	wg.Wait()
	b.ReportMetric(float64(cpuTime(b)-before)/float64(b.N), "cpu-ns/op")
}

func cpuTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	require.NoError(b, syscall.Getrusage(syscall.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
