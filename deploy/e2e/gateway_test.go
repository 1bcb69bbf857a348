package e2e

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"

	"example.com/tandem/deploy/e2e/load"
)

// From outside, through the gateway: the page, and calls over both transports.
func TestGateway_ServesServiceA(t *testing.T) {
	c := connectMesh(t)
	defer c.saveOnFailure(t)
	resp, err := http.Get(c.url + "/")
	require.NoError(t, err)
	page, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	assert.Equal(t, http.StatusOK, resp.StatusCode)
	assert.Contains(t, string(page), "<html")
	assert.Contains(t, resp.Header.Get("Server"), "envoy", "the response did not pass a gateway")
	for _, via := range transports {
		var got struct {
			Data struct{ ServedBy struct{ Pod string } }
		}
		assert.Equal(t, http.StatusOK, getJSON(t, c.url+"/api/data?via="+via, nil, &got))
		assert.Contains(t, c.readyPods(t, serviceB), got.Data.ServedBy.Pod)
	}
}

// Server-sent events pass the gateway and the sidecars one by one, and the stream
// outlives every usual timeout: Envoy's of 15 s, our route's of 30 s, and the 60 s of
// other proxies.
func TestGateway_StreamIsNotCut(t *testing.T) {
	const length, interval = 65 * time.Second, 200 * time.Millisecond
	c := connectMesh(t)
	defer c.saveOnFailure(t)
	stream := load.Follow(c.url + "/api/stream?interval=" + interval.String())
	t.Cleanup(stream.Stop)
	time.Sleep(length)
	stats := stream.Stats()
	assert.Zero(t, stats.Disconnects)
	assert.Zero(t, stats.Problems)
	assert.Greater(t, stats.Events, int(length/interval/2), "events are held back")
	assert.Less(t, stats.Gap, c.callTimeout(t)+interval, "events are held back")
	t.Logf("in %s: %d events, the longest time between two was %s", length, stats.Events, stats.Gap.Round(time.Millisecond))
}

// The gateway appends the client's address to X-Forwarded-For, and removes headers that
// it does not set itself. service-a logs the header, and trusts none of it.
func TestGateway_ForgedHeadersAreHandled(t *testing.T) {
	const forged, traceID = "203.0.113.9", "4bf92f3577b34da6a3ce929d0e0e4736"
	c := connectMesh(t)
	defer c.saveOnFailure(t)
	var got struct{ Call struct{ TraceID string } }
	status := getJSON(t, c.url+"/api/data?via=grpc", http.Header{
		"X-Forwarded-For": {forged},
		"Traceparent":     {"00-" + traceID + "-00f067aa0ba902b7-01"},
	}, &got)
	require.Equal(t, http.StatusOK, status)
	assert.Equal(t, traceID, got.Call.TraceID, "the client's trace goes on")
	line := c.logLine(t, serviceA, traceID)
	assert.Regexp(t, `"forwarded_for":"`+forged+`,\s?[0-9.]+"`, line)
	assert.NotEmpty(t, c.logLine(t, serviceB, traceID), "service-b is part of the trace")
	t.Log(line)

	// A malformed traceparent begins a new trace.
	status = getJSON(t, c.url+"/api/data?via=http", http.Header{"Traceparent": {"00-" + strings.Repeat("z", 32) + "-00f067aa0ba902b7-01"}}, &got)
	require.Equal(t, http.StatusOK, status)
	assert.Regexp(t, `^[0-9a-f]{32}$`, got.Call.TraceID)
	assert.NotEqual(t, traceID, got.Call.TraceID)
}

// logLine returns the latest line that a pod of a service has logged with this text.
func (c *cluster) logLine(t *testing.T, service, text string) (found string) {
	t.Helper()
	eventually(t, 30*time.Second, service+" logs no line with "+text, func(is *assert.CollectT) {
		for _, pod := range sortedKeys(c.pods(is, service)) {
			since := int64(60)
			logs, err := c.CoreV1().Pods(namespace).GetLogs(pod, &corev1.PodLogOptions{Container: service, SinceSeconds: &since}).DoRaw(context.Background())
			require.NoError(is, err)
			for line := range bytes.Lines(logs) {
				if bytes.Contains(line, []byte(text)) {
					found = string(line)
				}
			}
		}
		assert.NotEmpty(is, found)
	})
	return found
}
