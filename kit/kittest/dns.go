package kittest

import (
	"context"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// DNS is a DNS server on loopback. It knows only the names that Set gave it, and
// returns their addresses in random order, as CoreDNS does.
type DNS struct {
	server *dns.Server

	mu      sync.Mutex
	addrs   map[string][]string // by name
	broken  bool
	queries map[string]int // A queries, by name
}

// UseDNS starts a DNS server and makes net.DefaultResolver use it for the whole
// process. Call it once, in TestMain, and use different names in each test.
func UseDNS() *DNS {
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	d := &DNS{addrs: map[string][]string{}, queries: map[string]int{}}
	d.server = &dns.Server{PacketConn: conn, Handler: d}
	started := make(chan struct{})
	d.server.NotifyStartedFunc = func() { close(started) }
	go d.server.ActivateAndServe() //nolint:errcheck // ends with Close
	<-started
	net.DefaultResolver = &net.Resolver{
		PreferGo: true,
		Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{Timeout: time.Second}).DialContext(ctx, "udp", conn.LocalAddr().String())
		},
	}
	return d
}

// Close stops the server.
func (d *DNS) Close() { _ = d.server.Shutdown() }

// Set makes name resolve to addrs. Without addrs, the name does not exist.
func (d *DNS) Set(name string, addrs ...string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.addrs[dns.Fqdn(name)] = addrs
}

// Break makes the server respond SERVFAIL to every query, or ends that.
func (d *DNS) Break(broken bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.broken = broken
}

// Queries returns the number of A queries for name so far.
func (d *DNS) Queries(name string) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.queries[dns.Fqdn(name)]
}

// ServeDNS implements dns.Handler.
func (d *DNS) ServeDNS(w dns.ResponseWriter, query *dns.Msg) {
	d.mu.Lock()
	defer d.mu.Unlock()
	resp := new(dns.Msg).SetReply(query)
	question := query.Question[0]
	addrs := d.addrs[question.Name]
	switch {
	case d.broken:
		resp.Rcode = dns.RcodeServerFailure
	case len(addrs) == 0:
		resp.Rcode = dns.RcodeNameError
	case question.Qtype == dns.TypeA:
		for _, i := range rand.Perm(len(addrs)) {
			resp.Answer = append(resp.Answer, &dns.A{
				Hdr: dns.RR_Header{Name: question.Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 1},
				A:   net.ParseIP(addrs[i]),
			})
		}
	}
	if question.Qtype == dns.TypeA {
		d.queries[question.Name]++
	}
	_ = w.WriteMsg(resp) // the client may have disconnected
}
