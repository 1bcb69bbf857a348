// Service-a asks service-b, over HTTP and over gRPC, and shows what happened.
package main

import (
	"context"
	"errors"
	"io"

	"example.com/tandem/kit/command"
	"example.com/tandem/kit/config"
	"example.com/tandem/kit/fault"
	"example.com/tandem/kit/grpcclient"
	"example.com/tandem/kit/health"
	"example.com/tandem/kit/httpclient"
	"example.com/tandem/kit/httpserver"
	"example.com/tandem/kit/instance"
	"example.com/tandem/kit/life"
	"example.com/tandem/kit/limiter"
	"example.com/tandem/kit/telemetry"
	datav1 "example.com/tandem/proto/data/v1"
	"example.com/tandem/service-a/internal/api"
	"example.com/tandem/service-a/internal/backend"
)

const (
	name  = "service-a"
	about = "service-a asks service-b over HTTP and gRPC, and shows what happened."
)

func main() { life.Main(run) }

func run(ctx context.Context, args []string, environ map[string]string, out io.Writer) (err error) {
	if done, err := command.Run[Config](ctx, name, about, args, out); done {
		return err
	}
	cfg, err := config.Load[Config](environ)
	if err != nil {
		return err
	}
	me := instance.New(name, environ)
	tel, err := telemetry.New(ctx, me, cfg.LogLevel, environ, out)
	if err != nil {
		return err
	}
	defer tel.Flush()

	client := httpclient.New(httpclient.Options{Timeout: cfg.CallTimeout, Telemetry: tel})
	defer client.CloseIdleConnections()
	conn, err := grpcclient.New(cfg.ServiceBGRPCTarget, grpcclient.Options{
		Timeout: cfg.CallTimeout, Telemetry: tel, Idempotent: []string{datav1.DataService_ServiceDesc.ServiceName},
	})
	if err != nil {
		return config.Bad("SERVICE_B_GRPC_TARGET", cfg.ServiceBGRPCTarget, err.Error())
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	overHTTP, overGRPC := backend.NewHTTP(client, cfg.ServiceBHTTPURL), backend.NewGRPC(conn, cfg.CallTimeout)
	backends := map[string]backend.Backend{"http": overHTTP, "grpc": overGRPC}

	state := health.New(me)
	state.Check("service-b over http", api.Check(overHTTP))
	state.Check("service-b over grpc", api.Check(overGRPC))
	faults := fault.NewSwitch(bool(cfg.Faults), state.SetSick)

	web := httpserver.New(httpserver.Options{
		Name: "HTTP_ADDR", Addr: cfg.HTTPAddr, Telemetry: tel, Health: state, Faults: faults,
		MaxConnectionAge: cfg.MaxConnectionAge, Limiter: limiter.New(cfg.MaxInFlight, tel.Metrics),
	})
	web.Probes.Get("/", api.Page(me)) // load balancers probe it
	web.API.Get("/api/data", api.Data(me, backends))
	web.API.Get("/api/spread", api.Spread(me, backends))
	web.Streams.Get("/api/stream", api.Stream(overGRPC))

	admin := httpserver.NewAdmin(httpserver.AdminOptions{
		Name: "ADMIN_ADDR", Addr: cfg.AdminAddr, Telemetry: tel, Faults: faults, Pprof: bool(cfg.Pprof),
	})
	return life.Run(ctx, life.Options{
		Log: tel.Log, Health: state, Admin: admin, DrainDelay: cfg.DrainDelay, DrainTimeout: cfg.DrainTimeout,
	}, web)
}
