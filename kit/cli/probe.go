package cli

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"example.com/tandem/kit/call"
)

const probeUsage = `usage: probe [-timeout 3s] URL

URL is http://HOST[:PORT]/PATH, https://…, or grpc://HOST:PORT, which asks
grpc.health.v1. It resolves the name, connects, asks, and shows each step.
Ends with 0 if the answer is 2xx or SERVING, 1 if not, 2 for wrong usage.
`

// runProbe is the subcommand probe: it calls a service by its name and prints each
// step.
//
//	kubectl exec deploy/service-a -- /service-a probe http://service-b/health
//	kubectl exec deploy/service-a -- /service-a probe grpc://service-b-headless:9090
func runProbe(ctx context.Context, args []string, out io.Writer) error {
	flags := flag.NewFlagSet("probe", flag.ContinueOnError)
	flags.SetOutput(io.Discard) // errors are returned, and printed once
	timeout := flags.Duration("timeout", 3*time.Second, "")
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		_, err = io.WriteString(out, probeUsage)
		return err
	case err != nil:
		return usageError{"probe: " + err.Error() + "\n" + probeUsage}
	case flags.NArg() != 1:
		return usageError{probeUsage}
	case *timeout <= 0:
		return usageError{"probe: -timeout: want more than 0"}
	}
	target, err := url.Parse(flags.Arg(0))
	if err != nil {
		return usageError{"probe: " + err.Error()}
	}
	port := map[string]string{"http": "80", "https": "443", "grpc": target.Port()}[target.Scheme]
	if target.Port() != "" {
		port = target.Port()
	}
	if target.Hostname() == "" || port == "" {
		return usageError{fmt.Sprintf("probe: %q: want http://HOST[:PORT]/PATH or grpc://HOST:PORT", flags.Arg(0))}
	}

	ctx, cancel := context.WithTimeout(ctx, *timeout)
	defer cancel()
	p := &prober{out: out, target: target, port: port}
	if err := p.run(ctx); err != nil {
		return fmt.Errorf("probe: %s: %w", call.ClassOf(err), err)
	}
	return nil
}

type prober struct {
	out    io.Writer
	target *url.URL
	port   string
}

// run resolves, connects and asks, each a line; the first that fails ends it.
func (p *prober) run(ctx context.Context) error {
	start := time.Now()
	addrs, err := net.DefaultResolver.LookupHost(ctx, p.target.Hostname())
	if err != nil {
		return err
	}
	p.step("resolved", start, "%s is %s", p.target.Hostname(), strings.Join(addrs, ", "))
	if p.target.Scheme == "grpc" {
		return p.grpc(ctx)
	}
	return p.http(ctx)
}

func (p *prober) step(what string, since time.Time, format string, args ...any) {
	fmt.Fprintf(p.out, "%-9s %s (%s)\n", what, printable(fmt.Sprintf(format, args...)), time.Since(since).Round(10*time.Microsecond))
}

func (p *prober) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	start := time.Now()
	conn, err := (&net.Dialer{}).DialContext(ctx, network, addr)
	if late, ok := errors.AsType[net.Error](err); ok && late.Timeout() {
		return nil, &call.Error{Class: call.Timeout, Err: err} // as over HTTP: all of the time was given to it
	}
	if err != nil {
		return nil, err
	}
	p.step("connected", start, "to %s", conn.RemoteAddr())
	return conn, nil
}

func (p *prober) http(ctx context.Context) error {
	transport := &http.Transport{DialContext: p.dial, DisableKeepAlives: true}
	var sent time.Time
	trace := httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { sent = time.Now() }})
	req, err := http.NewRequestWithContext(trace, http.MethodGet, p.target.String(), nil)
	if err != nil {
		return err
	}
	req.Header.Set("User-Agent", "tandem-probe")
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close() //nolint:errcheck // read is all we want
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1024))
	if err != nil {
		return err
	}
	p.step("answered", sent, "%s %s", resp.Proto, resp.Status)
	if text := bytes.TrimSpace(body); len(text) > 0 {
		fmt.Fprintf(p.out, "%s\n", printable(string(text)))
	}
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		return fmt.Errorf("status %d: want 2xx", resp.StatusCode)
	}
	return nil
}

// printable is s, quoted if it holds anything that could steer a terminal.
func printable(s string) string {
	s = strings.ToValidUTF8(s, "\uFFFD")
	for _, r := range s {
		if r != '\n' && r != '\t' && !strconv.IsPrint(r) {
			return strconv.Quote(s)
		}
	}
	return s
}

func (p *prober) grpc(ctx context.Context) error {
	wire, err := p.dial(ctx, "tcp", net.JoinHostPort(p.target.Hostname(), p.port))
	if err != nil {
		return err
	}
	sent := time.Now()
	conn, err := grpc.NewClient("passthrough:///"+p.target.Host,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) { return wire, nil }),
	)
	if err != nil {
		return err
	}
	defer conn.Close() //nolint:errcheck // one question was all
	answer, err := grpc_health_v1.NewHealthClient(conn).Check(ctx, &grpc_health_v1.HealthCheckRequest{})
	if err != nil {
		return &call.Error{Class: call.ClassOfCode(status.Code(err)), Err: errors.New(printable(err.Error()))}
	}
	p.step("answered", sent, "gRPC health %s", answer.GetStatus())
	if answer.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING {
		return fmt.Errorf("health %s: want SERVING", answer.GetStatus())
	}
	return nil
}
