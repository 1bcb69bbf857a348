// Service-b returns data over HTTP and gRPC, and says which instance served it.
package main

import (
	"context"
	"io"

	"example.com/tandem/kit/cli"
	"example.com/tandem/kit/config"
	"example.com/tandem/kit/fault"
	"example.com/tandem/kit/grpcserver"
	"example.com/tandem/kit/health"
	"example.com/tandem/kit/httpserver"
	"example.com/tandem/kit/instance"
	"example.com/tandem/kit/lifecycle"
	"example.com/tandem/kit/limiter"
	"example.com/tandem/kit/telemetry"
	datav1 "example.com/tandem/proto/data/v1"
	"example.com/tandem/service-b/internal/domain"
	"example.com/tandem/service-b/internal/grpcapi"
	"example.com/tandem/service-b/internal/httpapi"
)

const (
	name  = "service-b"
	about = "service-b returns data over HTTP and gRPC, and says which instance served it."
)

func main() { lifecycle.Main(run) }

func run(ctx context.Context, args []string, environ map[string]string, out io.Writer) error {
	if done, err := cli.Run[Config](ctx, name, about, args, environ, out); done {
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

	state := health.New(me)
	state.Register(tel.Metrics)
	state.Details = bool(cfg.HealthDetails)
	limit := limiter.New(cfg.MaxInFlight, tel.Metrics)
	faults := fault.NewSwitch(bool(cfg.Faults), state.SetNotReady)
	faults.Set(cfg.Fault)
	data := domain.New(me, cfg.Message)
	callers := cfg.callers(tel)
	if callers != nil {
		state.Require("issuer's keys", callers.HealthCheck)
	}

	httpSrv := httpserver.New(httpserver.Options{
		AddrVar: "HTTP_ADDR", Addr: cfg.HTTPAddr, Telemetry: tel, Health: state, Faults: faults,
		MaxConnectionAge: cfg.MaxConnectionAge, Limiter: limit, Callers: callers,
	})
	httpSrv.API.Get("/api/data", httpapi.GetData(data))
	if faults != nil {
		httpSrv.Control.Handle(fault.Path, faults.Remote(me)) // service-a's page sets faults
	}

	grpcSrv := grpcserver.New(grpcserver.Options{
		AddrVar: "GRPC_ADDR", Addr: cfg.GRPCAddr, Telemetry: tel, Health: state, Faults: faults,
		MaxConnectionAge: cfg.MaxConnectionAge, Limiter: limit, Callers: callers, Reflection: bool(cfg.Reflection),
	})
	defer grpcSrv.Stop() // ends its goroutines if the start fails, for example on a port in use
	datav1.RegisterDataServiceServer(grpcSrv, grpcapi.New(data))

	admin := []lifecycle.Server{httpserver.NewAdmin("ADMIN_ADDR", cfg.AdminAddr, tel)}
	if cfg.Debug() {
		admin = append(admin, httpserver.NewDebug("DEBUG_ADDR", cfg.DebugAddr, tel, faults, bool(cfg.Pprof)))
	}
	return lifecycle.Run(ctx, lifecycle.Options{
		Log: tel.Log, Health: state, Admin: admin, Drain: cfg.Drain, Unknown: config.FindUnknown[Config](environ),
	}, httpSrv, grpcSrv)
}
