package e2e

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"example.com/tandem/deploy/e2e/load"
)

// On the wire, everything between the services is TLS. The plaintext request of a caller
// outside the mesh, which is seen too, shows that the capture would find plaintext.
func TestMesh_EncryptsBetweenPods(t *testing.T) {
	c := connectMesh(t)
	c.requireKind(t)
	if os.Geteuid() != 0 {
		t.Skip("only as root: the test captures packets on a node")
	}
	defer c.saveOnFailure(t)
	callee := firstOf(c.readyPods(t, serviceB))
	callers := map[string]bool{}
	for _, pod := range c.readyPods(t, serviceA) {
		callers[pod.Status.PodIP] = true
	}
	other := c.createNamespace(t, injectionLabel, "disabled")
	c.allowIngressFrom(t, other)
	const stranger = "caller"
	c.startCaller(t, other, stranger, stranger)

	packets := startCapture(t, callee.Spec.NodeName)
	for _, via := range transports {
		got, err := load.GetSpread(c.url, via, spreadCalls)
		require.NoError(t, err)
		require.Positive(t, got.Pods[callee.Name], "%s: the captured pod served no call", via)
	}
	eventually(t, 30*time.Second, "the plaintext request is not seen", func(is *assert.CollectT) {
		result := c.probe(other, stranger, httpURL(callee.Status.PodIP, httpPort, "/health"), reachTimeout)
		assert.Equal(is, "unavailable", result.class, result.output)
		assert.True(is, packets.contains([]byte("GET /health ")), "%s", result.output)
	})

	encrypted, total := 0, 0
	for _, p := range packets.all() {
		toCallee := p.to.Addr().String() == callee.Status.PodIP && callers[p.from.Addr().String()]
		fromCallee := p.from.Addr().String() == callee.Status.PodIP && callers[p.to.Addr().String()]
		if !toCallee && !fromCallee {
			continue
		}
		total += len(p.payload)
		if isTLSRecord(p.payload) {
			encrypted++
		}
		// The pod's name is in every response. (Not the name service-b: TLS sends it in plaintext, as SNI.)
		for _, plain := range []string{"GET /", "HTTP/1.1", "PRI * HTTP/2.0", callee.Name} {
			assert.NotContains(t, string(p.payload), plain, "plaintext from %s to %s", p.from, p.to)
		}
	}
	require.Positive(t, encrypted, "no TLS between the services")
	t.Logf("%d bytes between service-a and %s, in which %d packets begin with a TLS record, and none holds plaintext", total, callee.Name, encrypted)
}

// isTLSRecord reports whether a payload begins with a record of TLS 1.0 to 1.3.
func isTLSRecord(payload []byte) bool {
	return len(payload) > 2 && payload[0] >= 20 && payload[0] <= 23 && payload[1] == 3
}

// packet is a TCP packet with a payload.
type packet struct {
	from, to netip.AddrPort
	payload  []byte
}

type capture struct {
	mu      sync.Mutex
	packets []packet
}

func (c *capture) all() []packet {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.packets
}

func (c *capture) contains(text []byte) bool {
	for _, p := range c.all() {
		if bytes.Contains(p.payload, text) {
			return true
		}
	}
	return false
}

// startCapture captures all TCP packets on a node of kind until the end of the test. The
// node is a container with a network namespace of its own.
func startCapture(t *testing.T, node string) *capture {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "docker", "inspect", "--format", "{{.State.Pid}}", node).Output()
	require.NoError(t, err)
	ns, err := os.Open("/proc/" + strings.TrimSpace(string(out)) + "/ns/net")
	require.NoError(t, err)
	defer ns.Close() //nolint:errcheck // opened for reading
	socket, err := openPacketSocket(int(ns.Fd()))
	require.NoError(t, err)

	c := &capture{}
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 1<<16)
		for {
			select {
			case <-stop:
				return
			default:
			}
			n, _, err := unix.Recvfrom(socket, buf, 0)
			if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
				continue // no packet within the socket's timeout
			}
			if err != nil {
				return
			}
			if p, ok := parsePacket(buf[:n]); ok {
				c.mu.Lock()
				c.packets = append(c.packets, p)
				c.mu.Unlock()
			}
		}
	}()
	t.Cleanup(func() {
		close(stop)
		<-done
		assert.NoError(t, unix.Close(socket))
	})
	return c
}

// openPacketSocket opens a socket that receives every IPv4 packet of a network
// namespace, from all its interfaces.
func openPacketSocket(ns int) (socket int, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine, as its namespace is another one
		if err = unix.Setns(ns, unix.CLONE_NEWNET); err != nil {
			return
		}
		socket, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM, int(bigEndian(unix.ETH_P_IP)))
		if err != nil {
			return
		}
		err = errors.Join(
			unix.SetsockoptInt(socket, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20),
			unix.SetsockoptTimeval(socket, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100_000}),
		)
	}()
	<-done
	return socket, err
}

// bigEndian returns the number whose bytes in memory are v in network order.
func bigEndian(v uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, v))
}

// parsePacket parses an IPv4 packet. It returns false unless it is TCP with a payload.
func parsePacket(b []byte) (p packet, ok bool) {
	if len(b) < 20 || b[0]>>4 != 4 || b[9] != unix.IPPROTO_TCP {
		return p, false
	}
	header, total := int(b[0]&15)*4, int(binary.BigEndian.Uint16(b[2:]))
	if len(b) < total || total < header+20 {
		return p, false
	}
	tcp := b[header:total]
	offset := int(tcp[12]>>4) * 4
	if len(tcp) <= offset {
		return p, false
	}
	from, _ := netip.AddrFromSlice(b[12:16])
	to, _ := netip.AddrFromSlice(b[16:20])
	return packet{
		from:    netip.AddrPortFrom(from, binary.BigEndian.Uint16(tcp)),
		to:      netip.AddrPortFrom(to, binary.BigEndian.Uint16(tcp[2:])),
		payload: bytes.Clone(tcp[offset:]),
	}, true
}
