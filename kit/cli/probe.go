package cli

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"example.com/tandem/kit/call"
)

const probeUsage = `usage: probe [-timeout 3s] URL

Calls a service once and prints each step: the name is resolved, the connection
opened, the response received. URL is http://HOST[:PORT]/PATH, https://… or
grpc://HOST:PORT, which calls grpc.health.v1.
Exit status: 0 for a 2xx response or SERVING, 1 for a failure, 2 for wrong usage.
`

// runProbe runs the subcommand probe, which calls a service by its name and prints
// each step. namespace is that of the pod that runs it, or empty.
//
//	kubectl exec deploy/service-a -- /service probe http://service-b/health
//	kubectl exec deploy/service-a -- /service probe grpc://service-b-headless:9090
func runProbe(ctx context.Context, namespace string, args []string, out io.Writer) error {
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
		err = fmt.Errorf("probe: %s: %w", call.ClassOf(err), err)
		if advice := p.advice(err, namespace); advice != "" {
			err = fmt.Errorf("%w\nhint: %s", err, advice)
		}
		return err
	}
	return nil
}

// prober runs one probe.
type prober struct {
	out       io.Writer
	target    *url.URL
	port      string // of target, or the default of its scheme
	connected bool   // set by run
}

// run resolves the name, connects and sends a request. It prints each step, and
// returns the error of the first step that fails.
func (p *prober) run(ctx context.Context) error {
	start := time.Now()
	addrs, err := net.DefaultResolver.LookupHost(ctx, p.target.Hostname())
	if err != nil {
		return err
	}
	p.printStep("resolved", start, "%s is %s", p.target.Hostname(), strings.Join(addrs, ", "))

	start = time.Now()
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", net.JoinHostPort(p.target.Hostname(), p.port))
	if timeout, ok := errors.AsType[net.Error](err); ok && timeout.Timeout() {
		// ClassOf would say Unavailable, because a client's dial timeout is shorter than
		// its deadline. Here both are the same.
		return &call.Error{Class: call.Timeout, Err: err}
	}
	if err != nil {
		return err
	}
	defer conn.Close() //nolint:errcheck // the call has returned
	p.connected = true
	p.printStep("connected", start, "to %s", conn.RemoteAddr())

	if p.target.Scheme == "grpc" {
		return p.grpc(ctx, conn)
	}
	if err = p.http(ctx, conn); err != nil && ctx.Err() != nil {
		return ctx.Err() // the reason why a read or write failed
	}
	return err
}

// http sends a GET request and prints the response. It does not use http.Transport,
// which can fail with an unrelated error if the server sends first, as a gRPC server
// does.
func (p *prober) http(ctx context.Context, conn net.Conn) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.target.String(), nil)
	if err != nil {
		return err
	}
	req.Header.Set("User-Agent", "tandem-probe")
	req.Close = true
	if p.target.Scheme == "https" {
		conn = tls.Client(conn, &tls.Config{ServerName: p.target.Hostname()})
	}
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })() // end reads and writes

	start := time.Now()
	if err := req.Write(conn); err != nil {
		return err
	}
	const maxResponse = 1 << 20 // headers included
	//nolint:bodyclose // Close would read the body to its end; run closes conn
	resp, err := http.ReadResponse(bufio.NewReader(io.LimitReader(conn, maxResponse)), req)
	if err != nil {
		return err
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1024))
	if err != nil {
		return err
	}
	p.printStep("received", start, "%s %s", resp.Proto, resp.Status)
	if text := bytes.TrimSpace(body); len(text) > 0 {
		fmt.Fprintf(p.out, "%s\n", printable(string(text)))
	}
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		err := fmt.Errorf("status %d: want 2xx", resp.StatusCode)
		if class := call.ClassOfStatus(resp.StatusCode); class == call.Denied {
			return &call.Error{Class: class, Err: err}
		}
		return err
	}
	return nil
}

// grpc calls grpc.health.v1 and prints the response.
func (p *prober) grpc(ctx context.Context, conn net.Conn) error {
	client, err := grpc.NewClient("passthrough:///"+p.target.Host,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) { return conn, nil }),
	)
	if err != nil {
		return err
	}
	defer client.Close() //nolint:errcheck // the call has returned
	start := time.Now()
	resp, err := grpc_health_v1.NewHealthClient(client).Check(ctx, &grpc_health_v1.HealthCheckRequest{})
	if err != nil {
		return &call.Error{Class: call.ClassOfCode(status.Code(err)), Err: errors.New(printable(err.Error()))}
	}
	p.printStep("received", start, "gRPC health %s", resp.GetStatus())
	if resp.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING {
		return fmt.Errorf("health %s: want SERVING", resp.GetStatus())
	}
	return nil
}

func (p *prober) printStep(step string, since time.Time, format string, args ...any) {
	fmt.Fprintf(p.out, "%-9s %s (%s)\n", step, printable(fmt.Sprintf(format, args...)), time.Since(since).Round(10*time.Microsecond))
}

// advice returns what to check after a probe that failed with err, or "" if the error
// says enough. Errors of gRPC, and that of a wrong protocol, have no type: their texts
// are matched.
func (p *prober) advice(err error, namespace string) string {
	host, text := p.target.Hostname(), err.Error()
	if dns, ok := errors.AsType[*net.DNSError](err); ok {
		return dnsAdvice(dns, host, namespace)
	}
	switch class := call.ClassOf(err); {
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Sprintf("nothing listens on port %s of %s, or its Service has no ready pod. Is the program running, and is the port right? "+
			"A Service's port may differ from the pod's; a headless name takes the pod's port", p.port, host)
	case !p.connected && (class == call.Timeout || class == call.Unavailable):
		return "the connection was not opened: usually a NetworkPolicy drops it, or the port or the address is wrong"
	case class == call.Timeout:
		return "connected, but no response in time: raise -timeout, or see the log of the service"
	case class == call.Denied:
		return "the service's authorization policy does not list this pod's service account, or the service wants credentials, which the check does not send"
	case p.target.Scheme != "https" && (strings.Contains(text, "connection reset by peer") || strings.Contains(text, "broken pipe")):
		return "the connection was reset after the request. A mesh with mutual TLS (STRICT) resets plaintext callers: run the check from a pod that is in the mesh"
	case p.target.Scheme == "http" && strings.Contains(text, "malformed HTTP"):
		return fmt.Sprintf("port %s does not speak HTTP/1. If it is a gRPC port, use grpc://%s", p.port, net.JoinHostPort(host, p.port))
	case p.target.Scheme == "grpc" && (strings.Contains(text, "frame too large") || strings.Contains(text, "HTTP status code received")):
		return fmt.Sprintf("port %s does not speak gRPC. If it is an HTTP port, use http://%s/health", p.port, net.JoinHostPort(host, p.port))
	case p.target.Scheme == "grpc" && strings.Contains(text, "code = Unimplemented"):
		return "the server speaks gRPC, but does not serve grpc.health.v1"
	default:
		return ""
	}
}

// dnsAdvice is advice for a lookup of host that failed.
func dnsAdvice(err *net.DNSError, host, namespace string) string {
	switch {
	case err.IsNotFound && !strings.Contains(host, "."):
		where := "the name has no address"
		if namespace != "" {
			where += " in namespace " + namespace
		}
		return fmt.Sprintf("%s; did you mean %s.NAMESPACE? A short name resolves only in the caller's own namespace. "+
			"A headless name has no address while no pod is ready", where, host)
	case err.IsNotFound:
		return "the name has no address: check its spelling and namespace. A headless name has no address while no pod is ready"
	case err.IsTimeout:
		return "DNS did not respond: check that the NetworkPolicies allow port 53 (UDP and TCP) to the cluster's DNS"
	default:
		return "the DNS server failed: check its pods and their log (k8s-app=kube-dns in kube-system)"
	}
}

// printable returns s, quoted if it contains control characters, which could steer
// a terminal.
func printable(s string) string {
	s = strings.ToValidUTF8(s, "\uFFFD")
	for _, r := range s {
		if r != '\n' && r != '\t' && !strconv.IsPrint(r) {
			return strconv.Quote(s)
		}
	}
	return s
}
