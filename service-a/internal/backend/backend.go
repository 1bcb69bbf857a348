// Package backend calls service-b. Backend is the interface; HTTP and GRPC are
// its two implementations, in http.go and grpc.go, to be compared side by side.
// Deadlines, retries and metrics are in kit's clients, not here.
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

// Backend calls service-b.
type Backend interface {
	// Get makes one call. It returns an *InvalidError if service-b rejects the
	// request as invalid; call.ClassOf classifies every other error. The CallInfo
	// is valid even if there is an error.
	Get(ctx context.Context, key string) (*datav1.Data, CallInfo, error)
}

// Watcher opens streams of service-b. Only GRPC implements it.
type Watcher interface {
	// Watch yields the messages of service-b, one for each interval, until ctx
	// ends. A stream that breaks is opened again after a backoff, and its sequence
	// restarts at 1. Watch yields an error when a stream ended before its first
	// message, and then tries again. An *InvalidError or an error of class
	// call.Denied or call.Other ends the sequence.
	Watch(ctx context.Context, key string, interval time.Duration) iter.Seq2[*datav1.WatchDataResponse, error]
}

// CallInfo describes one call, including its retries.
type CallInfo struct {
	Transport string `json:"transport"` // http or grpc
	// Target is the configured name of service-b.
	Target string `json:"target"`
	// Addresses are the addresses that the target resolved to, as host:port.
	Addresses []string `json:"addresses"`
	// BalancedBy says who chose the pod: the client, or the network behind the target's
	// only address.
	BalancedBy call.Balancer `json:"balancedBy,omitempty"`
	// Peer is the address that the last attempt connected to: a pod's, or a Service's.
	Peer       string  `json:"peer,omitempty"`
	Attempts   int     `json:"attempts"`
	DurationMS float64 `json:"durationMs"`
	TraceID    string  `json:"traceId,omitempty"`
	// Tries are the attempts, in their order.
	Tries []call.Try `json:"tries"`
}

// dataOf returns the data of a response. It returns errNoPod if the response does not
// name the pod that served it, and so is not service-b's.
func dataOf(response *datav1.GetDataResponse) (*datav1.Data, error) {
	if response.GetData().GetServedBy().GetPod() == "" {
		return nil, errNoPod
	}
	return response.GetData(), nil
}

var errNoPod = errors.New("service-b's response does not name the pod that served it")

// newCallInfo describes a call that began at start, from the client's record.
func newCallInfo(ctx context.Context, transport, target string, start time.Time, r *call.Record) CallInfo {
	info := CallInfo{
		Transport:  transport,
		Target:     target,
		Addresses:  append([]string{}, r.Addresses...), // [] in JSON, never null
		BalancedBy: r.BalancedBy,
		Peer:       r.Peer,
		Attempts:   r.Attempts,
		DurationMS: float64(time.Since(start).Microseconds()) / 1000,
		Tries:      r.Tries(),
	}
	if span := trace.SpanContextFromContext(ctx); span.IsValid() {
		info.TraceID = span.TraceID().String()
	}
	return info
}

// InvalidError reports a request that service-b rejected as invalid.
type InvalidError struct{ Detail string }

func (e *InvalidError) Error() string { return e.Detail }

// HealthCheck returns a check for /health that makes one call.
func HealthCheck(b Backend) func(context.Context) error {
	return func(ctx context.Context) error {
		_, _, err := b.Get(ctx, "")
		return err
	}
}
