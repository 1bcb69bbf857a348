package e2e

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// attack is something ill-meant that is done to a port, over and over until the
// context ends. It counts connections, and those that the server closed.
type attack struct {
	name           string
	opened, closed atomic.Int64
	// lasting connections are those that a server may keep: it cannot tell them
	// from an honest caller's.
	lasting bool
}

// closeWithin is how long a server may keep a connection that says nothing of
// use: its time-out is 5 s, and the machine may be busy.
const closeWithin = 15 * time.Second

// wantClosed waits for the server to close a connection.
func (a *attack) wantClosed(conn net.Conn) {
	_ = conn.SetReadDeadline(time.Now().Add(closeWithin)) // of an open connection it cannot fail
	if _, err := io.Copy(io.Discard, conn); !errors.Is(err, os.ErrDeadlineExceeded) {
		a.closed.Add(1)
	}
	_ = conn.Close()
}

func (a *attack) dial(ctx context.Context, addr string) net.Conn {
	conn, err := (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil
	}
	a.opened.Add(1)
	return conn
}

// halfOpen connects, and says nothing.
func (a *attack) halfOpen(ctx context.Context, addr string) {
	if conn := a.dial(ctx, addr); conn != nil {
		a.wantClosed(conn)
	}
}

// slowHeaders sends headers, a byte at a time.
func (a *attack) slowHeaders(ctx context.Context, addr string) {
	conn := a.dial(ctx, addr)
	if conn == nil {
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for _, b := range []byte("GET /api/data HTTP/1.1\r\nHost: tandem\r\nX-Slow: " + string(bytes.Repeat([]byte{'x'}, 4096))) {
			if _, err := conn.Write([]byte{b}); err != nil {
				return
			}
			time.Sleep(300 * time.Millisecond)
		}
	}()
	a.wantClosed(conn)
	<-done
}

// bigHeaders sends a megabyte of them.
func (a *attack) bigHeaders(ctx context.Context, addr string) {
	conn := a.dial(ctx, addr)
	if conn == nil {
		return
	}
	go func() {
		_, _ = fmt.Fprintf(conn, "GET /api/data HTTP/1.1\r\nHost: tandem\r\nX-Big: %s\r\n\r\n", bytes.Repeat([]byte{'x'}, 1<<20)) // it is cut off
	}()
	a.wantClosed(conn)
}

// garbage sends bytes that mean nothing.
func (a *attack) garbage(ctx context.Context, addr string) {
	conn := a.dial(ctx, addr)
	if conn == nil {
		return
	}
	noise := make([]byte, 64<<10)
	_, _ = rand.Read(noise)
	go func() { _, _ = conn.Write(noise) }()
	a.wantClosed(conn)
}

// resets are how many questions are asked and taken back on one connection, in
// about five seconds.
const resets = 10_000

// rapidResets asks over HTTP/2 and takes each question back at once
// (CVE-2023-44487).
func (a *attack) rapidResets(ctx context.Context, addr string) {
	conn := a.dial(ctx, addr)
	if conn == nil {
		return
	}
	defer conn.Close() //nolint:errcheck // it is broken by then
	go func() { _, _ = io.Copy(io.Discard, conn) }()
	_ = conn.SetWriteDeadline(time.Now().Add(closeWithin))
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		return
	}
	headers := grpcHeaders()
	framer := http2.NewFramer(conn, nil)
	if framer.WriteSettings() != nil {
		return
	}
	for id := uint32(1); id < 2*resets && ctx.Err() == nil; id += 2 {
		if id%20 == 1 { // what the machine would give to this attacker alone is no measure
			time.Sleep(5 * time.Millisecond)
		}
		if framer.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: headers, EndHeaders: true}) != nil ||
			framer.WriteRSTStream(id, http2.ErrCodeCancel) != nil {
			break
		}
	}
	a.closed.Add(1) // by us, or by the server that has had enough
}

// grpcHeaders begin a call of GetData. They are valid on every stream of a
// connection, because none refers to a header that was sent before.
func grpcHeaders() []byte {
	var block bytes.Buffer
	headers := hpack.NewEncoder(&block)
	for _, pair := range [][2]string{
		{":method", "POST"}, {":scheme", "http"}, {":path", "/data.v1.DataService/GetData"}, {":authority", "service-b"},
		{"content-type", "application/grpc"}, {"te", "trailers"},
	} {
		_ = headers.WriteField(hpack.HeaderField{Name: pair[0], Value: pair[1]}) // into memory
	}
	return block.Bytes()
}

// idle opens an HTTP/2 connection, and makes no call.
func (a *attack) idle(ctx context.Context, addr string) { a.halfMessages(ctx, addr, 0, 0) }

// halfStreams is how many calls halfMessages makes on one connection.
const halfStreams = 200

// bigHalves are messages of 1 MiB, far more than the contract has use for;
// smallHalves are within the limit of 64 KiB for one message.
func (a *attack) bigHalves(ctx context.Context, addr string) {
	a.halfMessages(ctx, addr, halfStreams, 1<<20)
}

func (a *attack) smallHalves(ctx context.Context, addr string) {
	a.halfMessages(ctx, addr, halfStreams, 60<<10)
}

// halfMessages makes calls on one connection, each with a message of which the
// last byte never comes. It holds the connection until the server closes it or
// the context ends, and sends as much as the server's flow control permits.
func (a *attack) halfMessages(ctx context.Context, addr string, streams, size uint32) {
	conn := a.dial(ctx, addr)
	if conn == nil {
		return
	}
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	defer conn.Close() //nolint:errcheck // it is broken by then
	if err := holdHalfMessages(conn, streams, size); err != nil && ctx.Err() == nil {
		a.closed.Add(1)
	}
}

func holdHalfMessages(conn net.Conn, streams, size uint32) error {
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		return err
	}
	framer := http2.NewFramer(conn, conn)
	if err := framer.WriteSettings(); err != nil {
		return err
	}
	const initialWindow, maxFrame = 65535, 16384 // of HTTP/2
	left := map[uint32]int{}                     // bytes, by stream
	window := map[uint32]int{0: initialWindow}   // bytes, by stream; 0 is the connection
	perStream := initialWindow
	headers := grpcHeaders()
	prefix := binary.BigEndian.AppendUint32([]byte{0}, size)
	for i := range streams {
		id := 2*i + 1
		if err := framer.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: headers, EndHeaders: true}); err != nil {
			return err
		}
		if err := framer.WriteData(id, false, prefix); err != nil {
			return err
		}
		left[id], window[id] = int(size)-1, initialWindow-len(prefix)
		window[0] -= len(prefix)
	}
	noise := make([]byte, maxFrame)
	for {
		for id := range left {
			for n := min(left[id], window[id], window[0], maxFrame); n > 0; n = min(left[id], window[id], window[0], maxFrame) {
				if err := framer.WriteData(id, false, noise[:n]); err != nil {
					return err
				}
				left[id], window[id], window[0] = left[id]-n, window[id]-n, window[0]-n
			}
		}
		frame, err := framer.ReadFrame()
		if err != nil {
			return err
		}
		switch f := frame.(type) {
		case *http2.SettingsFrame:
			if f.IsAck() {
				break
			}
			if value, ok := f.Value(http2.SettingInitialWindowSize); ok {
				for id := range left {
					window[id] += int(value) - perStream
				}
				perStream = int(value)
			}
			err = framer.WriteSettingsAck()
		case *http2.PingFrame:
			if !f.IsAck() {
				err = framer.WritePing(true, f.Data)
			}
		case *http2.WindowUpdateFrame:
			window[f.StreamID] += int(f.Increment)
		case *http2.RSTStreamFrame:
			delete(left, f.StreamID)
		}
		if err != nil {
			return err
		}
	}
}

// exposeGRPC opens one pod's gRPC port to everybody, as nobody should: it is the
// port itself that is tried here, not the policy before it.
func (c *cluster) exposeGRPC(t *testing.T) (corev1.Pod, string) {
	t.Helper()
	pod := one(c.serving(t, serviceB))
	port := intstr.FromInt32(9090)
	label := map[string]string{testLabel: "exposed"}
	meta := metav1.ObjectMeta{Name: "e2e-exposed", Labels: label}
	pods, services, policies := c.CoreV1().Pods(namespace), c.CoreV1().Services(namespace), c.NetworkingV1().NetworkPolicies(namespace)
	mark := func(ctx context.Context, value string) error {
		patch := fmt.Sprintf(`{"metadata":{"labels":{%q:%s}}}`, "tandem.example.com/exposed", value)
		_, err := pods.Patch(ctx, pod.Name, types.MergePatchType, []byte(patch), metav1.PatchOptions{})
		return err
	}
	require.NoError(t, mark(t.Context(), `"true"`))
	restore(t, "label of "+pod.Name, func(ctx context.Context) error { return mark(ctx, "null") })
	exposed := map[string]string{"tandem.example.com/exposed": "true"}
	_, err := policies.Create(t.Context(), &networkingv1.NetworkPolicy{ObjectMeta: meta, Spec: networkingv1.NetworkPolicySpec{
		PodSelector: metav1.LabelSelector{MatchLabels: exposed},
		PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress},
		Ingress:     []networkingv1.NetworkPolicyIngressRule{{Ports: []networkingv1.NetworkPolicyPort{{Port: &port}}}},
	}}, metav1.CreateOptions{})
	require.NoError(t, err)
	restore(t, "policy", func(ctx context.Context) error { return policies.Delete(ctx, meta.Name, metav1.DeleteOptions{}) })
	service, err := services.Create(t.Context(), &corev1.Service{ObjectMeta: meta, Spec: corev1.ServiceSpec{
		Type: corev1.ServiceTypeNodePort, Selector: exposed, Ports: []corev1.ServicePort{{Port: 9090, TargetPort: port}},
	}}, metav1.CreateOptions{})
	require.NoError(t, err)
	restore(t, "Service", func(ctx context.Context) error { return services.Delete(ctx, meta.Name, metav1.DeleteOptions{}) })
	addr := net.JoinHostPort(pod.Status.HostIP, strconv.Itoa(int(service.Spec.Ports[0].NodePort)))
	eventually(t, time.Minute, "the node's port does not open: are the nodes' addresses reached from here, as on Linux?", func(is *assert.CollectT) {
		conn, err := net.DialTimeout("tcp", addr, time.Second)
		require.NoError(is, err)
		assert.NoError(is, conn.Close())
	})
	return pod, addr
}

func TestWhenCallersAreHostileOthersAreServed(t *testing.T) {
	r := newRow(t, 14, "hostile input: slow headers, 1,000 half-open and 6,000 idle connections, half-sent gRPC messages, headers of 1 MB, garbage on both ports, rapid resets",
		"other callers keep their p99 within twice of quiet; no restart; connections that no honest caller would keep are closed")
	c := connect(t)
	defer c.keep(t)
	before := c.restarts(t)
	door, err := url.Parse(c.url)
	require.NoError(t, err)
	c.needNodes(t)
	victim, behind := c.exposeGRPC(t)
	admins := map[string]string{}
	for pod := range c.serving(t, serviceA) {
		admins[pod] = c.forward(t, namespace, pod, 8081)
	}
	admins[victim.Name] = c.forward(t, namespace, victim.Name, 8081)
	quietGoroutines, quietMemory, memory := map[string]float64{}, map[string]float64{}, map[string]float64{}

	f := c.traffic(t, offer{rate: 100, callers: 400})
	f.awaitAnswers(t)
	span := either(r, 20*time.Second, 60*time.Second)
	from := f.now()
	time.Sleep(span)
	quiet := f.now()
	for pod, admin := range admins {
		quietGoroutines[pod] = gauge(t, admin, "go_goroutines")
		quietMemory[pod] = gauge(t, admin, residentMemory) / (1 << 20)
	}

	ctx, stop := context.WithCancel(t.Context())
	var attackers sync.WaitGroup
	var attacks []*attack
	launch := func(name string, many int, addr string, pause time.Duration, do func(*attack, context.Context, string)) *attack {
		a := &attack{name: name}
		attacks = append(attacks, a)
		for i := range many {
			attackers.Go(func() {
				time.Sleep(time.Duration(i) * 6 * time.Second / time.Duration(many)) // not all in one moment
				for ctx.Err() == nil {
					do(a, ctx, addr)
					select {
					case <-time.After(pause):
					case <-ctx.Done():
					}
				}
			})
		}
		return a
	}
	// watch notes the most memory of each pod while attacks go on.
	watch := func(span time.Duration) {
		for end := time.Now().Add(span); time.Now().Before(end); time.Sleep(time.Second) {
			for pod, admin := range admins {
				memory[pod] = max(memory[pod], gauge(t, admin, residentMemory)/(1<<20))
			}
		}
	}
	start := f.now()
	launch("half-open connections to service-a", 1000, door.Host, time.Second, (*attack).halfOpen)
	launch("slow headers to service-a", 100, door.Host, time.Second, (*attack).slowHeaders)
	launch("headers of 1 MB to service-a", 2, door.Host, time.Second, (*attack).bigHeaders)
	launch("garbage to service-a", 5, door.Host, time.Second, (*attack).garbage)
	launch("half-open connections to service-b's gRPC", 200, behind, time.Second, (*attack).halfOpen)
	launch("garbage to service-b's gRPC", 5, behind, time.Second, (*attack).garbage)
	launch("rapid resets to service-b's gRPC, connections of 10,000 each", 1, behind, time.Second, (*attack).rapidResets)
	launch("200 half-sent messages of 1 MiB to service-b's gRPC", 4, behind, time.Second, (*attack).bigHalves).lasting = true
	launch("200 half-sent messages of 60 KiB to service-b's gRPC", 4, behind, time.Second, (*attack).smallHalves).lasting = true
	// To connect again at once would measure how fast the machine connects.
	launch("idle connections to service-b's gRPC", 6000, behind, 30*time.Second, (*attack).idle).lasting = true
	watch(6 * time.Second) // until all attacks have begun
	middle := f.now()
	watch(span)
	end := f.now()
	stop()
	attackers.Wait()
	f.stop()
	r.fact("the attacks lasted %s", (end - start).Round(time.Second))
	for _, a := range attacks {
		opened, closed := a.opened.Load(), a.closed.Load()
		r.fact("%s: %d, of which the server closed %d", a.name, opened, closed)
		assert.Positive(t, opened, a.name)
		if !a.lasting {
			assert.Equal(t, opened, closed, a.name)
		}
	}
	for _, pod := range names(admins) {
		r.fact("%s: %.0f MiB resident when quiet, at most %.0f under attack (limit 128)", pod, quietMemory[pod], memory[pod])
	}
	for _, via := range transports {
		calm := r.measured(f.figures(via, "quiet", from, quiet))
		hard := r.measured(f.figures(via, "under attack", middle, end))
		r.fact("%s: p99 under attack is %.1f times that of quiet", via, hard.P99/calm.P99)
		// Of some seconds, the 99th percentile is what the machine did in one moment:
		// there, that others are served at all.
		assert.LessOrEqual(t, hard.P99/calm.P99, either(r, 20.0, 2.0), via)
		assert.Empty(t, hard.Failed, "%s: %v", via, f.why())
	}
	assert.Equal(t, before, c.restarts(t), "restarts")
	eventually(t, time.Minute, "goroutines stay behind", func(is *assert.CollectT) {
		for pod, admin := range admins {
			assert.LessOrEqual(is, gauge(t, admin, "go_goroutines"), quietGoroutines[pod]*1.5+20, pod)
		}
	})
}
