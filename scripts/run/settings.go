package main

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"time"
)

// host is the address on which the services listen: other machines cannot connect.
const host = "127.0.0.1"

// port is a port on which a service listens.
type port struct {
	number int
	owner  string
	key    string // the variable that changes it
}

func (p port) addr() string { return net.JoinHostPort(host, strconv.Itoa(p.number)) }

// byName returns localhost and the port: services call each other by name, here, too.
func (p port) byName() string { return net.JoinHostPort("localhost", strconv.Itoa(p.number)) }

type settings struct {
	aHTTP, aAdmin, aDebug, bHTTP, bAdmin, bDebug, bGRPC port

	rawLogs bool
	// environ is the environment of both services.
	environ []string
	faults  bool
}

func (s settings) ports() []port {
	return []port{s.aHTTP, s.aAdmin, s.aDebug, s.bHTTP, s.bAdmin, s.bDebug, s.bGRPC}
}

// readSettings returns an error with one line for each invalid value.
func readSettings(getenv func(string) string) (settings, error) {
	var errs []error
	read := func(key string, standard int, owner string) port {
		p := port{standard, owner, key}
		if value := getenv(key); value != "" {
			n, err := strconv.ParseUint(value, 10, 16)
			if err != nil || n == 0 {
				errs = append(errs, fmt.Errorf("%s=%q: want a port from 1 to 65535", key, value))
			}
			p.number = int(n)
		}
		return p
	}
	s := settings{
		aHTTP:  read("SERVICE_A_HTTP_PORT", 8080, "service-a's HTTP"),
		aAdmin: read("SERVICE_A_ADMIN_PORT", 8081, "service-a's admin"),
		aDebug: read("SERVICE_A_DEBUG_PORT", 8082, "service-a's debug"),
		bHTTP:  read("SERVICE_B_HTTP_PORT", 8090, "service-b's HTTP"),
		bAdmin: read("SERVICE_B_ADMIN_PORT", 8091, "service-b's admin"),
		bDebug: read("SERVICE_B_DEBUG_PORT", 8092, "service-b's debug"),
		bGRPC:  read("SERVICE_B_GRPC_PORT", 9090, "service-b's gRPC"),
		faults: cmp.Or(getenv("FAULTS"), "on") == "on",
	}
	for key, standard := range map[string]string{"DRAIN_DELAY": "0s", "FAULTS": "on", "HEALTH_DETAILS": "on", "REFLECTION": "on"} {
		s.environ = append(s.environ, key+"="+cmp.Or(getenv(key), standard))
	}
	switch format := cmp.Or(getenv("LOG_FORMAT"), "text"); format {
	case "json":
		s.rawLogs = true
	case "text":
	default:
		errs = append(errs, fmt.Errorf("LOG_FORMAT=%q: want text or json", format))
	}
	if len(errs) == 0 {
		owners := map[int]port{}
		for _, p := range s.ports() {
			if first, taken := owners[p.number]; taken {
				errs = append(errs, fmt.Errorf("%s=%d: %s is the same port", p.key, p.number, first.key))
			}
			owners[p.number] = p
		}
	}
	return s, errors.Join(errs...)
}

// portsFree returns an error with one line for each port in use.
func portsFree(ports []port) error {
	var errs []error
	for _, p := range ports {
		if err := p.free(); err != nil {
			errs = append(errs, fmt.Errorf("port %d (%s) %w; set %s to another port", p.number, p.owner, err, p.key))
		}
	}
	return errors.Join(errs...)
}

func (p port) free() error {
	// Listening proves too little: macOS permits it beside a server on all addresses,
	// and a server on ::1 would get the calls to localhost.
	if conn, err := net.DialTimeout("tcp", p.byName(), time.Second); err == nil {
		_ = conn.Close() // that it opened is enough
		return errors.New("is in use by another process")
	}
	l, err := net.Listen("tcp", p.addr())
	if err != nil {
		return fmt.Errorf("cannot be opened (%w)", err)
	}
	return l.Close()
}

// services returns the services in the order of their start, callees first.
func (s settings) services() []*service {
	b := []string{
		"POD_NAME=service-b-1", "HTTP_ADDR=" + s.bHTTP.addr(), "ADMIN_ADDR=" + s.bAdmin.addr(), "DEBUG_ADDR=" + s.bDebug.addr(), "GRPC_ADDR=" + s.bGRPC.addr(),
	}
	a := []string{
		"POD_NAME=service-a-1", "HTTP_ADDR=" + s.aHTTP.addr(), "ADMIN_ADDR=" + s.aAdmin.addr(), "DEBUG_ADDR=" + s.aDebug.addr(),
		"SERVICE_B_HTTP_URL=http://" + s.bHTTP.byName(), "SERVICE_B_GRPC_TARGET=dns:///" + s.bGRPC.byName(),
		"SERVICE_B_PODS_URL=http://" + s.bHTTP.byName(),
	}
	return []*service{
		{name: "service-b", api: s.bHTTP, environ: slices.Concat(s.environ, b)},
		{name: "service-a", api: s.aHTTP, environ: slices.Concat(s.environ, a)},
	}
}
