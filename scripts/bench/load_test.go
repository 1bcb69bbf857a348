package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const goodResponse = `{"servedBy":{"pod":"a"},"call":{},"data":{"servedBy":{"pod":"b"}}}`

func TestLoad_ChecksResponses(t *testing.T) {
	for _, c := range []struct {
		name    string
		respond http.HandlerFunc
		want    string // of the error
	}{
		{
			name:    "a response",
			respond: func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, goodResponse) },
		},
		{
			name: "a chunked response",
			respond: func(w http.ResponseWriter, _ *http.Request) {
				fmt.Fprint(w, goodResponse[:20])
				_ = http.NewResponseController(w).Flush()
				fmt.Fprint(w, goodResponse[20:])
			},
		},
		{
			name: "Connection: close",
			respond: func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Connection", "close")
				fmt.Fprint(w, goodResponse)
			},
		},
		{
			name: "status 503",
			respond: func(w http.ResponseWriter, _ *http.Request) {
				http.Error(w, "overloaded", http.StatusServiceUnavailable)
			},
			want: "503 Service Unavailable",
		},
		{
			name: "a response without a pod",
			respond: func(w http.ResponseWriter, _ *http.Request) {
				fmt.Fprint(w, strings.ReplaceAll(goodResponse, `"b"`, `""`))
			},
			want: "data with its pod",
		},
		{
			name:    "a closed connection",
			respond: func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
			want:    "EOF",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			server := httptest.NewServer(c.respond)
			defer server.Close()
			r, err := load(t.Context(), server.Listener.Addr().String(), "/", 3, 10*time.Millisecond, 40*time.Millisecond)
			if c.want != "" {
				require.ErrorContains(t, err, c.want)
				return
			}
			require.NoError(t, err)
			assert.Positive(t, r.perSecond)
			assert.Positive(t, r.p50)
			assert.GreaterOrEqual(t, r.p99, r.p50)
			assert.GreaterOrEqual(t, float64(r.calls), r.perSecond*0.04-1)
		})
	}
}

func TestNamesPod_NeedsDataAndPod(t *testing.T) {
	for response, want := range map[string]bool{
		goodResponse: true,
		`{"data": { "servedBy": {"service": "b", "pod": "p"}}}`: true,
		`{"servedBy":{"pod":"a"},"data":{"servedBy":{}}}`:       false,
		`{"servedBy":{"pod":"a"},"data":null}`:                  false,
		`{"servedBy":{"pod":"a"}}`:                              false,
		`{"data":{"servedBy":{"pod":""}}}`:                      false,
		`{"data":{"servedBy":{"pod":`:                           false,
		``:                                                      false,
	} {
		assert.Equal(t, want, namesPod([]byte(response)), response)
	}
}

func TestLoad_KeepsConnections(t *testing.T) {
	var opened atomic.Int32
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, goodResponse) }))
	server.Config.ConnContext = func(ctx context.Context, _ net.Conn) context.Context {
		opened.Add(1)
		return ctx
	}
	server.Start()
	defer server.Close()
	_, err := load(t.Context(), server.Listener.Addr().String(), "/", 4, 0, 50*time.Millisecond)
	require.NoError(t, err)
	assert.EqualValues(t, 4, opened.Load())
}

func TestLoad_EndsWithContext(t *testing.T) {
	release := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-release }))
	defer server.Close()
	defer close(release)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	_, err := load(ctx, server.Listener.Addr().String(), "/", 2, 0, time.Minute)
	assert.ErrorIs(t, err, context.DeadlineExceeded)
}
