package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

const (
	// readyWithin is much more than a service needs, which is 100 ms.
	readyWithin = 20 * time.Second
	readyEvery  = 25 * time.Millisecond
)

// service is the process of one service.
type service struct {
	name    string
	api     port
	environ []string

	binary string
	cmd    *exec.Cmd
	done   chan struct{} // closed when the process has exited and its log is printed; nil before start
}

// build builds the service from the folder with its name.
func (s *service) build(ctx context.Context, bin string) error {
	var err error
	if s.binary, err = filepath.Abs(filepath.Join(bin, s.name)); err != nil {
		return err
	}
	build := exec.CommandContext(ctx, cmp.Or(os.Getenv("GO"), "go"), "build", "-C", s.name, "-trimpath", "-tags", "grpcnotrace,nethttpomithttp2", "-o", s.binary, ".")
	build.Stdout, build.Stderr = os.Stdout, os.Stderr
	build.Cancel = func() error { return build.Process.Signal(os.Interrupt) } // go build then stops its compilers
	if err := build.Run(); err != nil {
		return fmt.Errorf("build %s: %w", s.name, err)
	}
	return nil
}

// start starts the service, and sends it SIGTERM when ctx ends.
func (s *service) start(ctx context.Context, out *output) error {
	log := out.log(s.name)
	s.cmd = exec.CommandContext(ctx, s.binary)
	s.cmd.Env = append(os.Environ(), s.environ...)
	s.cmd.Stdout, s.cmd.Stderr = log, log
	s.cmd.SysProcAttr = processAttributes()
	s.cmd.Cancel = func() error { return s.cmd.Process.Signal(syscall.SIGTERM) }
	if err := s.cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", s.name, err)
	}
	s.done = make(chan struct{})
	go func() {
		_ = s.cmd.Wait() // ProcessState has the outcome
		log.flush()
		close(s.done)
	}()
	return nil
}

// waitReady waits until /readyz responds 200.
func (s *service) waitReady(ctx context.Context) error {
	url := "http://" + s.api.addr() + "/readyz"
	limit := time.After(readyWithin)
	tick := time.NewTicker(readyEvery)
	defer tick.Stop()
	for {
		status, _, err := get(ctx, url)
		if err == nil && status == http.StatusOK {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.done:
			return s.exitedEarly(" before it was ready")
		case <-limit:
			if err == nil {
				err = errors.New(http.StatusText(status))
			}
			return fmt.Errorf("%s is not ready after %s: GET %s: %w; its log is above", s.name, readyWithin, url, err)
		case <-tick.C:
		}
	}
}

func (s *service) exitedEarly(when string) error {
	return fmt.Errorf("%s exited%s (%s); its log is above", s.name, when, s.cmd.ProcessState)
}

// wait waits until the service has exited, and kills it when killing ends.
func (s *service) wait(killing context.Context) error {
	select {
	case <-s.done:
	case <-killing.Done():
		_ = s.cmd.Process.Kill() // it may have exited
		<-s.done
	}
	if !s.cmd.ProcessState.Success() {
		return fmt.Errorf("%s failed (%s)", s.name, s.cmd.ProcessState)
	}
	return nil
}

// get makes one request on a new connection.
func get(ctx context.Context, url string) (status int, body []byte, err error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return 0, nil, err
	}
	req.Close = true
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close() //nolint:errcheck // read completely
	body, err = io.ReadAll(resp.Body)
	return resp.StatusCode, body, err
}
