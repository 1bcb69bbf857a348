// Package kittest is what tests of services need and should not fake: a DNS
// server, loopback addresses to be pods at, and processes.
package kittest

import (
	"context"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// DNS is a DNS server on loopback. It answers A queries in random order, as
// CoreDNS does, and knows no other names than those that were set.
type DNS struct {
	server *dns.Server
	mu     sync.Mutex
	names  map[string][]string
	broken bool
	asked  map[string]int
}

// UseDNS starts a DNS server and makes net.DefaultResolver ask it. Call it
// once, in TestMain, and give each test names of its own: that resolver is
// what the code under test asks, and there is only one in a process.
func UseDNS() *DNS {
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	d := &DNS{names: map[string][]string{}, asked: map[string]int{}}
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

// Set makes name stand for addresses; for none, it does not exist.
func (d *DNS) Set(name string, addrs ...string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.names[dns.Fqdn(name)] = addrs
}

// Break makes the server answer SERVFAIL, as CoreDNS does when it is in trouble.
func (d *DNS) Break(broken bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.broken = broken
}

// Queries is how many A queries for name have come.
func (d *DNS) Queries(name string) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.asked[dns.Fqdn(name)]
}

// ServeDNS answers one query.
func (d *DNS) ServeDNS(w dns.ResponseWriter, query *dns.Msg) {
	d.mu.Lock()
	defer d.mu.Unlock()
	answer := new(dns.Msg).SetReply(query)
	question := query.Question[0]
	addrs := d.names[question.Name]
	switch {
	case d.broken:
		answer.Rcode = dns.RcodeServerFailure
	case len(addrs) == 0:
		answer.Rcode = dns.RcodeNameError
	case question.Qtype == dns.TypeA:
		for _, i := range rand.Perm(len(addrs)) {
			answer.Answer = append(answer.Answer, &dns.A{
				Hdr: dns.RR_Header{Name: question.Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 1},
				A:   net.ParseIP(addrs[i]),
			})
		}
	}
	if question.Qtype == dns.TypeA {
		d.asked[question.Name]++
	}
	_ = w.WriteMsg(answer) // who asked may have left
}
