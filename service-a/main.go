// Service-a calls service-b over HTTP and gRPC and shows what happened.
package main

import (
	"context"
	"errors"
	"io"

	"example.com/tandem/kit/cli"
	"example.com/tandem/kit/config"
	"example.com/tandem/kit/fault"
	"example.com/tandem/kit/health"
	"example.com/tandem/kit/httpserver"
	"example.com/tandem/kit/instance"
	"example.com/tandem/kit/lifecycle"
	"example.com/tandem/kit/limiter"
	"example.com/tandem/kit/telemetry"
	"example.com/tandem/service-a/internal/api"
	"example.com/tandem/service-a/internal/faults"
	"example.com/tandem/service-a/internal/live"
	"example.com/tandem/service-a/internal/page"
)

const (
	name  = "service-a"
	about = "service-a calls service-b over HTTP and gRPC and shows what happened."
)

func main() { lifecycle.Main(run) }

func run(ctx context.Context, args []string, environ map[string]string, out io.Writer) (err error) {
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

	serviceB, err := newClients(cfg, tel)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, serviceB.close()) }()
	var pods *faults.Pods
	if cfg.Faults {
		pods = faults.New(cfg.ServiceBPodsURL, serviceB.token)
	}
	collector := live.New(serviceB.ways(), pods)
	defer collector.Close()
	backends := collector.Backends()

	state := health.New(me)
	state.Register(tel.Metrics)
	serviceB.addChecks(state, cfg, tel)
	state.Details = bool(cfg.HealthDetails)
	ownFaults := fault.NewSwitch(bool(cfg.Faults), state.SetNotReady)
	ownFaults.Set(cfg.Fault)

	httpSrv := httpserver.New(httpserver.Options{
		AddrVar: "HTTP_ADDR", Addr: cfg.HTTPAddr, Telemetry: tel, Health: state, Faults: ownFaults,
		MaxConnectionAge: cfg.MaxConnectionAge, Limiter: limiter.New(cfg.MaxInFlight, tel.Metrics),
	})
	httpSrv.Probes.Get("/", page.Index()) // also the probe of load balancers
	httpSrv.Probes.Get("/static/*", page.Static())
	httpSrv.API.Get("/api/data", api.Data(me, backends))
	httpSrv.API.Get("/api/spread", api.Spread(me, backends))
	httpSrv.Streams.Get("/api/stream", api.Stream(serviceB.grpc))
	httpSrv.ControlStreams.Get("/api/live", api.Live(collector, api.Hello{ServedBy: me, Faults: bool(cfg.Faults), TraceURL: cfg.TraceURL}, tel))
	if pods != nil {
		httpSrv.Control.Put("/api/faults/{pod}", api.SetFault(pods, collector))
		httpSrv.Control.Delete("/api/faults/{pod}", api.ClearFault(pods, collector))
	}

	admin := []lifecycle.Server{httpserver.NewAdmin("ADMIN_ADDR", cfg.AdminAddr, tel)}
	if cfg.Debug() {
		admin = append(admin, httpserver.NewDebug("DEBUG_ADDR", cfg.DebugAddr, tel, ownFaults, bool(cfg.Pprof)))
	}
	return lifecycle.Run(ctx, lifecycle.Options{
		Log: tel.Log, Health: state, Admin: admin, Drain: cfg.Drain, Unknown: config.FindUnknown[Config](environ),
	}, httpSrv)
}
