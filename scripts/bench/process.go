package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"
)

// startLimit is the time limit for a program to become ready.
const startLimit = 10 * time.Second

// program is one of the four programs.
type program struct {
	name   string
	dir    string // of its package
	binary string // built from dir
	args   []string
	env    []string
	addr   string // of its HTTP server
}

// process is a running program.
type process struct {
	program
	cmd    *exec.Cmd
	log    *os.File
	exited chan struct{}
	ready  time.Duration // from exec to the first 200 of /readyz
}

// start starts a program with a minimal environment, and waits until it is ready. Its
// output goes to a file in dir.
func start(ctx context.Context, p program, dir string) (*process, error) {
	// In append mode, so that it can be truncated while the program runs.
	log, err := os.OpenFile(filepath.Join(dir, p.name+".log"), os.O_CREATE|os.O_RDWR|os.O_APPEND|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(p.binary, p.args...) // ended by stop, after its figures have been read
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH")}, p.env...)
	cmd.Stdout, cmd.Stderr = log, log
	began := time.Now()
	if err := cmd.Start(); err != nil {
		return nil, errors.Join(err, log.Close())
	}
	s := &process{program: p, cmd: cmd, log: log, exited: make(chan struct{})}
	go func() {
		_ = cmd.Wait() // it is killed by stop
		close(s.exited)
	}()
	if err := s.await(ctx); err != nil {
		output := s.output()
		s.stop()
		return nil, fmt.Errorf("%s is not ready: %w; its output: %s", p.name, err, output)
	}
	s.ready = time.Since(began)
	return s, nil
}

// await requests /readyz until it responds 200.
func (s *process) await(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	request := []byte("GET /readyz HTTP/1.1\r\nHost: " + s.addr + "\r\nConnection: close\r\n\r\n")
	for {
		if isReady(ctx, s.addr, request) {
			return nil
		}
		select {
		case <-s.exited:
			return errors.New("the process has exited")
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(200 * time.Microsecond):
		}
	}
}

func isReady(ctx context.Context, addr string, request []byte) bool {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return false
	}
	defer conn.Close() //nolint:errcheck // nothing is in flight
	_ = conn.SetDeadline(time.Now().Add(time.Second))
	if _, err := conn.Write(request); err != nil {
		return false
	}
	status := make([]byte, len("HTTP/1.1 200"))
	n, _ := conn.Read(status)
	return string(status[:n]) == "HTTP/1.1 200"
}

// output returns the end of the program's output.
func (s *process) output() string {
	text, _ := os.ReadFile(s.log.Name())
	return string(bytes.TrimSpace(text[max(0, len(text)-2000):]))
}

// cut truncates the log, which grows by gigabytes an hour under load.
func (s *process) cut() error { return s.log.Truncate(0) }

func (s *process) stop() {
	_ = s.cmd.Process.Kill() // it may have exited
	<-s.exited
	_ = s.log.Close()
}

// resident returns a process's resident memory in MiB.
func resident(pid int) (float64, error) {
	if runtime.GOOS != "linux" {
		out, err := exec.Command("ps", "-o", "rss=", "-p", strconv.Itoa(pid)).Output()
		if err != nil {
			return 0, fmt.Errorf("ps: %w", err)
		}
		return mebibytes(string(out))
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			return mebibytes(strings.TrimSuffix(strings.TrimSpace(value), "kB"))
		}
	}
	return 0, fmt.Errorf("no VmRSS of process %d", pid)
}

func mebibytes(kibibytes string) (float64, error) {
	n, err := strconv.ParseFloat(strings.TrimSpace(kibibytes), 64)
	return n / 1024, err
}

// cpuTime returns the CPU time that a process has used; 0 without /proc.
func cpuTime(pid int) time.Duration {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	// The second field is the name, which may contain anything and ends with ")".
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	const userTime, systemTime = 11, 12 // after the first two fields
	if len(fields) <= systemTime {
		return 0
	}
	user, _ := strconv.Atoi(fields[userTime])
	system, _ := strconv.Atoi(fields[systemTime])
	return time.Duration(user+system) * 10 * time.Millisecond // USER_HZ is 100 on every platform of Go
}

// allTime returns the CPU time that all processes have used, and the CPU time of all
// CPUs since the start of the machine; 0 without /proc.
func allTime() (used, given time.Duration) {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, 0
	}
	line, _, _ := strings.Cut(string(text), "\n")
	// cpu user nice system idle iowait irq softirq steal …
	for i, field := range strings.Fields(line) {
		n, _ := strconv.Atoi(field)
		ticks := time.Duration(n) * 10 * time.Millisecond
		switch {
		case i >= 1 && i <= 3:
			used += ticks
			given += ticks
		case i >= 4 && i <= 8:
			given += ticks
		}
	}
	return used, given
}

// freeAddrs returns n addresses on loopback that were free when it checked.
func freeAddrs(n int) ([]string, error) {
	var addrs []string
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close() //nolint:errcheck // all stay open until the last is found, so that they differ
		addrs = append(addrs, l.Addr().String())
	}
	return addrs, nil
}

// build builds the program of a directory as for a release, and returns the size of its binary in bytes.
func build(ctx context.Context, dir, binary string) (int64, error) {
	cmd := exec.CommandContext(ctx, cmp.Or(os.Getenv("GO"), "go"), "build", "-trimpath", "-tags", "grpcnotrace,nethttpomithttp2", "-ldflags", "-s -w", "-o", binary, ".")
	cmd.Dir = dir                                   // in its own module
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0") // as in the images
	if text, err := cmd.CombinedOutput(); err != nil {
		return 0, fmt.Errorf("build %s: %w: %s", dir, err, text)
	}
	info, err := os.Stat(binary)
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

// findRoot returns the repository's root: the nearest directory with go.work.
func findRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for ; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.work")); err == nil {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", errors.New("no go.work here or above: run bench in the repository")
		}
	}
}
