// Package faults sets and reads the faults of service-b's pods, for the page.
//
// It keeps no state, so that any instance of service-a can serve any request: the pods are
// found by a DNS name that lists all of them, also those that are not ready, and each
// refuses a request that is for another pod (see Remote in kit's package fault).
package faults

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"example.com/tandem/kit/call"
	"example.com/tandem/kit/fault"
	"example.com/tandem/kit/identity"
)

const (
	// timeout is the deadline of one request to all pods.
	timeout = 2 * time.Second
	// dialTimeout bounds what pods of a dead node take from the others.
	dialTimeout = timeout / 4
	// concurrency is how many pods get a request of one change at once.
	concurrency = 16
	// maxChanges is how many changes are made at once: each sends requests to all pods.
	maxChanges = 4
	// maxResponse is the largest response accepted, in bytes.
	maxResponse = 16 << 10
)

// Pods reaches the fault switch of each pod of service-b. Create it with New.
type Pods struct {
	url   url.URL
	token *identity.Source
	http  http.Transport
	// changes has an element for each change under way.
	changes chan struct{}
}

// New returns the Pods behind a URL: the name must resolve to the pods themselves, and not
// to a virtual IP. token says who calls; nil means that calls do not.
func New(pods url.URL, token *identity.Source) *Pods {
	return &Pods{url: pods, token: token, changes: make(chan struct{}, maxChanges), http: http.Transport{
		DisableKeepAlives:      true, // requests are rare, and there may be many pods
		DialContext:            (&net.Dialer{Timeout: dialTimeout}).DialContext,
		MaxResponseHeaderBytes: maxResponse,
	}}
}

// Status is the fault of a pod, and the IP by which the pod was reached.
type Status struct {
	fault.Status
	IP string
}

// List returns the faults of all pods that respond.
func (p *Pods) List(ctx context.Context) ([]Status, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var mu sync.Mutex
	var all []Status
	err := p.each(ctx, func(ip string) {
		if code, body, err := p.do(ctx, ip, http.MethodGet, "", nil); err == nil && code == http.StatusOK {
			if s, err := decode(ip, body); err == nil {
				mu.Lock()
				defer mu.Unlock()
				all = append(all, s)
			}
		}
	})
	return all, err
}

// UnknownError means that no pod of service-b has a name.
type UnknownError struct{ Detail string }

func (e *UnknownError) Error() string { return e.Detail }

// ErrTooMany is the error of a change that had no turn in time, because of others.
var ErrTooMany = errors.New("too many faults are being changed: try again later")

// Set sets the fault of one pod to body, as JSON, and returns what the pod responds. It returns an
// *UnknownError if there is no such pod, and ErrTooMany; call.ClassOf classifies every other error.
func (p *Pods) Set(ctx context.Context, pod string, body []byte) (Status, error) {
	return p.change(ctx, http.MethodPut, pod, body)
}

// Clear removes the fault of one pod, and otherwise does as Set does.
func (p *Pods) Clear(ctx context.Context, pod string) (Status, error) {
	return p.change(ctx, http.MethodDelete, pod, nil)
}

// change sends a request to all pods: only the pod that it names accepts it.
func (p *Pods) change(ctx context.Context, method, pod string, body []byte) (Status, error) {
	select {
	case p.changes <- struct{}{}:
		defer func() { <-p.changes }()
	case <-time.After(timeout):
		return Status{}, ErrTooMany
	case <-ctx.Done():
		return Status{}, ctx.Err()
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var mu sync.Mutex
	var status Status
	var decodeErr, failed error
	others, done := 0, false
	err := p.each(ctx, func(ip string) {
		code, response, err := p.do(ctx, ip, method, pod, body)
		mu.Lock()
		defer mu.Unlock()
		switch {
		case done:
		case err != nil && (failed == nil || call.ClassOf(failed) == call.Refused):
			failed = fmt.Errorf("%s: %w", ip, err)
		case err != nil:
		case code == http.StatusMisdirectedRequest:
			others++
		case code != http.StatusOK: // another pod may still have the name: the address may be that of a pod that has gone
			failed = statusError(ip, code)
		default:
			done = true
			status, decodeErr = decode(ip, response)
			cancel() // the others need not respond
		}
	})
	switch {
	case done:
		return status, decodeErr
	case err != nil:
		return Status{}, err
	case failed != nil && (others == 0 || call.ClassOf(failed) != call.Refused):
		return Status{}, &call.Error{Class: call.ClassOf(failed), Err: fmt.Errorf("pod %q is not among the %d that responded; %w", pod, others, failed)}
	}
	// Where nothing listens, there is no pod.
	return Status{}, &UnknownError{fmt.Sprintf("no pod of service-b is named %.253q: %d others responded", pod, others)}
}

// statusError returns the error for a status other than 200.
func statusError(ip string, code int) error {
	if code == http.StatusNotFound {
		return fmt.Errorf("%s has no fault switch: is FAULTS=on at service-b?", ip)
	}
	class := call.ClassOfStatus(code)
	if class == call.OK {
		class = call.Other // such as 400
	}
	return &call.Error{Class: class, Err: fmt.Errorf("%s responded with status %d", ip, code)}
}

// each calls f for each IP of the pods, and waits until all calls have returned.
func (p *Pods) each(ctx context.Context, f func(ip string)) error {
	ips, err := net.DefaultResolver.LookupHost(ctx, p.url.Hostname())
	if err != nil {
		return &call.Error{Class: call.DNS, Err: err}
	}
	var group errgroup.Group
	group.SetLimit(concurrency)
	for _, ip := range ips {
		group.Go(func() error {
			f(ip)
			return nil
		})
	}
	return group.Wait()
}

// do sends one request to an IP. The header Host has the name, by which a mesh knows the
// service.
func (p *Pods) do(ctx context.Context, ip, method, pod string, body []byte) (code int, response []byte, err error) {
	u := p.url
	u.Path = fault.Path
	u.Host = net.JoinHostPort(ip, cmp.Or(u.Port(), "80"))
	if pod != "" {
		u.RawQuery = url.Values{"pod": {pod}}.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), bytes.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	req.Host = p.url.Host
	if p.token != nil {
		authorization, err := p.token.Authorization(ctx)
		if err != nil {
			return 0, nil, err
		}
		req.Header.Set("Authorization", authorization)
	}
	resp, err := p.http.RoundTrip(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close() //nolint:errcheck // only read
	response, err = io.ReadAll(io.LimitReader(resp.Body, maxResponse))
	return resp.StatusCode, response, err
}

func decode(ip string, body []byte) (Status, error) {
	s := Status{IP: ip}
	if err := json.Unmarshal(body, &s.Status); err != nil {
		return Status{}, fmt.Errorf("decode the fault of %s: %w", ip, err)
	}
	if s.Instance.Pod == "" {
		return Status{}, errors.New(ip + " does not say which pod it is")
	}
	return s, nil
}
