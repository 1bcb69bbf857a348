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

// callTimeout is how long an answer may take; services give up long before.
const callTimeout = 10 * time.Second

// round is what one closed loop measured.
type round struct {
	calls     int // those of the warm-up too
	perSecond float64
	p50, p99  time.Duration
}

// load asks addr for path over c connections, each with one request under way
// at a time, and measures for d, after a warm-up that does not count. It ends
// with the first call that fails, or with ctx.
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
				cancel() // the others need not go on
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

// firstOf is the error that made the others stop, if any of them is one.
func firstOf(errs []error) error {
	for _, err := range errs {
		if err != nil && !errors.Is(err, context.Canceled) {
			return err
		}
	}
	return errors.Join(errs...)
}

// calls makes n calls, one after the other, and returns the time of each that
// ended between from and until.
func calls(ctx context.Context, addr, path string, from, until time.Time) (times []time.Duration, n int, err error) {
	c := &caller{addr: addr, request: []byte("GET " + path + " HTTP/1.1\r\nHost: " + addr + "\r\n\r\n")}
	defer func() { _ = c.close() }() // nothing is under way
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

// caller makes calls over one connection. It knows just enough HTTP/1.1 for
// the two servers that it meets: what the client costs is taken from the same
// cores, and would blur the difference.
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
	if err := c.ask(); err != nil {
		if ctx.Err() != nil { // which is why its deadline passed
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
	c.stop = context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) }) // wakes a call that waits
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

// ask sends the request, reads the answer and checks it.
func (c *caller) ask() error {
	if _, err := c.conn.Write(c.request); err != nil {
		return err
	}
	line, err := c.line()
	if err != nil {
		return err
	}
	status := string(line) // the line is overwritten by the next one
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
		return fmt.Errorf("answered %q %.300q: want 200, and data that names a pod", status, c.body)
	}
	if last { // a server may ask its clients to come anew, and the pair does
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
		return errors.New("answered without Content-Length")
	}
	c.body = slices.Grow(c.body[:0], size)[:size]
	_, err = io.ReadFull(c.in, c.body)
	return err
}

// namesPod reports whether a's answer holds data of b's, and who gave it.
func namesPod(body []byte) bool {
	_, data, _ := bytes.Cut(body, []byte(`"data":`))
	_, pod, found := bytes.Cut(data, []byte(`"pod":`))
	pod = bytes.TrimLeft(pod, " ") // protojson puts a space there or does not, so that no one relies on it
	return found && len(pod) > 1 && pod[0] == '"' && pod[1] != '"'
}
