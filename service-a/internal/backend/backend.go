// Package backend calls service-b: one interface, and one implementation for
// each transport, to be read side by side.
package backend

import (
	"context"
	"errors"
	"iter"
	"time"

	"go.opentelemetry.io/otel/trace"

	"example.com/tandem/kit/call"
	datav1 "example.com/tandem/proto/data/v1"
)

// Backend calls service-b. An error is an *InvalidError if service-b refused
// the request as such; call.ClassOf tells the class of any other.
type Backend interface {
	// Get makes one call. The Call is valid even if there is an error.
	Get(ctx context.Context, key string) (*datav1.Data, CallInfo, error)
}

// Watcher opens streams of service-b, which only gRPC has.
type Watcher interface {
	// Watch yields the messages of service-b, one for each interval, until ctx
	// ends. A stream that breaks is opened again after a backoff, and its sequence
	// restarts at 1. Watch yields an error when a stream ended before its first
	// message, and then tries again. An *InvalidError or an error of class
	// call.Other ends the sequence.
	Watch(ctx context.Context, key string, interval time.Duration) iter.Seq2[*datav1.WatchDataResponse, error]
}

// InvalidError is a request that service-b refused because it breaks a rule.
type InvalidError struct{ Detail string }

func (e *InvalidError) Error() string { return e.Detail }

var errEmpty = errors.New("the response holds no data, or does not say who served it")

// dataOf returns the data of a response, or errEmpty if the response does not
// name the pod that served it.
func dataOf(response *datav1.GetDataResponse) (*datav1.Data, error) {
	if response.GetData().GetServedBy().GetPod() == "" {
		return nil, errEmpty
	}
	return response.GetData(), nil
}

// CallInfo says how one call went.
type CallInfo struct {
	Transport string `json:"transport"`
	// Target is the name that was called, as configured.
	Target string `json:"target"`
	// Addresses that the name stood for.
	Addresses []string `json:"addresses"`
	// Peer is the address that answered: a pod's, or a Service's.
	Peer       string  `json:"peer,omitempty"`
	Attempts   int     `json:"attempts"`
	DurationMS float64 `json:"durationMs"`
	TraceID    string  `json:"traceId,omitempty"`
}

// describe makes a Call of what a client noted.
func describe(ctx context.Context, transport, target string, start time.Time, r *call.Record) CallInfo {
	c := CallInfo{
		Transport:  transport,
		Target:     target,
		Addresses:  append([]string{}, r.Addresses...), // [] in JSON, never null
		Peer:       r.Peer,
		Attempts:   r.Attempts,
		DurationMS: float64(time.Since(start).Microseconds()) / 1000,
	}
	if span := trace.SpanContextFromContext(ctx); span.IsValid() {
		c.TraceID = span.TraceID().String()
	}
	return c
}
