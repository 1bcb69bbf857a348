package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http/httputil"
	"slices"
	"strconv"
	"sync"
	"time"
)

// callTimeout is the time limit of a response, longer than the services' own.
const callTimeout = 10 * time.Second

// round is the result of one closed loop.
type round struct {
	calls     int // including those of the warm-up
	perSecond float64
	p50, p99  time.Duration
}

// load requests path from addr over c connections, each with one request in flight,
// and measures for d after a warm-up. It ends with the first failed call, or with ctx.
func load(ctx context.Context, addr, path string, c int, warmUp, d time.Duration) (round, error) {
	ctx, cancel := context.WithTimeout(ctx, warmUp+d+callTimeout)
	defer cancel()
	from := time.Now().Add(warmUp)
	until := from.Add(d)

	times, errs, counts := make([][]time.Duration, c), make([]error, c), make([]int, c)
	var callers sync.WaitGroup
	for i := range c {
		callers.Go(func() {
			if times[i], counts[i], errs[i] = calls(ctx, addr, path, from, until); errs[i] != nil {
				cancel() // stop the others
			}
		})
	}
	callers.Wait()
	if err := firstOf(errs); err != nil {
		return round{}, err
	}
	all := slices.Concat(times...)
	slices.Sort(all)
	total := 0
	for _, n := range counts {
		total += n
	}
	return round{
		calls:     total,
		perSecond: float64(len(all)) / d.Seconds(),
		p50:       percentile(all, 0.50),
		p99:       percentile(all, 0.99),
	}, nil
}

// firstOf returns the error that stopped the other callers, or nil.
func firstOf(errs []error) error {
	for _, err := range errs {
		if err != nil && !errors.Is(err, context.Canceled) {
			return err
		}
	}
	return errors.Join(errs...)
}

// calls makes calls one after the other, and returns the duration of each one that
// ended between from and until.
func calls(ctx context.Context, addr, path string, from, until time.Time) (times []time.Duration, n int, err error) {
	c := &caller{addr: addr, request: []byte("GET " + path + " HTTP/1.1\r\nHost: " + addr + "\r\n\r\n")}
	defer func() { _ = c.close() }() // nothing is in flight
	for now := time.Now(); now.Before(until); {
		if err := c.call(ctx); err != nil {
			return nil, n, err
		}
		n++
		start := now
		now = time.Now()
		if now.After(from) && now.Before(until) {
			times = append(times, now.Sub(start))
		}
	}
	return times, n, nil
}

// caller makes calls over one connection. It implements just enough HTTP/1.1 for the
// two servers: a client that needs more CPU time would take it from them.
type caller struct {
	addr    string
	request []byte

	conn net.Conn
	stop func() bool
	in   *bufio.Reader
	body []byte
}

func (c *caller) call(ctx context.Context) error {
	if c.conn == nil {
		if err := c.open(ctx); err != nil {
			return err
		}
	}
	if err := c.roundTrip(); err != nil {
		if ctx.Err() != nil { // ctx ended, and so set the deadline
			err = ctx.Err()
		}
		return fmt.Errorf("call http://%s: %w", c.addr, err)
	}
	return nil
}

func (c *caller) open(ctx context.Context) error {
	conn, err := (&net.Dialer{Timeout: callTimeout}).DialContext(ctx, "tcp", c.addr)
	if err != nil {
		return err
	}
	c.conn, c.in = conn, bufio.NewReader(conn)
	c.stop = context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) }) // ends a call in flight
	return nil
}

func (c *caller) close() error {
	if c.conn == nil {
		return nil
	}
	c.stop()
	err := c.conn.Close()
	c.conn = nil
	return err
}

// roundTrip sends the request, and reads and checks the response.
func (c *caller) roundTrip() error {
	if _, err := c.conn.Write(c.request); err != nil {
		return err
	}
	line, err := c.line()
	if err != nil {
		return err
	}
	status := string(line) // the buffer of line is reused
	size, chunked, last := -1, false, false
	for {
		if line, err = c.line(); err != nil {
			return err
		}
		if len(line) == 0 {
			break
		}
		name, value, _ := bytes.Cut(line, []byte(": "))
		switch {
		case bytes.EqualFold(name, []byte("Content-Length")):
			if size, err = strconv.Atoi(string(value)); err != nil {
				return err
			}
		case bytes.EqualFold(name, []byte("Transfer-Encoding")):
			chunked = true
		case bytes.EqualFold(name, []byte("Connection")):
			last = bytes.EqualFold(value, []byte("close"))
		}
	}
	if err := c.read(size, chunked); err != nil {
		return err
	}
	if status != "HTTP/1.1 200 OK" || !namesPod(c.body) {
		return fmt.Errorf("status %q, body %.300q: want 200, and data with its pod", status, c.body)
	}
	if last { // Connection: close, as the pair sends on old connections
		return c.close()
	}
	return nil
}

func (c *caller) line() ([]byte, error) {
	line, err := c.in.ReadSlice('\n')
	return bytes.TrimSuffix(line, []byte("\r\n")), err
}

func (c *caller) read(size int, chunked bool) (err error) {
	switch {
	case chunked:
		if c.body, err = io.ReadAll(httputil.NewChunkedReader(c.in)); err != nil {
			return err
		}
		_, err = c.line() // the empty line after the last chunk
		return err
	case size < 0:
		return errors.New("no Content-Length")
	}
	c.body = slices.Grow(c.body[:0], size)[:size]
	_, err = io.ReadFull(c.in, c.body)
	return err
}

// namesPod reports whether a's response holds the data of b, with its pod.
func namesPod(body []byte) bool {
	_, data, _ := bytes.Cut(body, []byte(`"data":`))
	_, pod, found := bytes.Cut(data, []byte(`"pod":`))
	pod = bytes.TrimLeft(pod, " ") // protojson adds a space at random
	return found && len(pod) > 1 && pod[0] == '"' && pod[1] != '"'
}
