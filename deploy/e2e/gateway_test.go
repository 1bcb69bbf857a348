package e2e

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

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

// Server-sent events pass the gateway and the sidecars one by one. The stream lasts longer
// than Envoy's default route timeout (15 s), the HTTPRoute's (30 s), and the 60 s of other
// proxies.
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

// The gateway appends the client's address to X-Forwarded-For, and service-a logs the
// header. A client's trace goes on through both services; a malformed traceparent is
// replaced.
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

// With the components gateway/tls and gateway/grpc, the gateway serves HTTPS, redirects
// HTTP, and passes calls of service-b's own gRPC service on, but not those of others.
func TestGateway_ServesHTTPSAndGRPC(t *testing.T) {
	c := connectMesh(t)
	defer c.saveOnFailure(t)
	original := c.render(t, "kind-istio")
	changed := c.renderNew(t, copyManifests(t), "resources: [../kind-istio]\n"+
		"components: [../../components/gateway/tls, ../../components/gateway/grpc, ../../components/gateway/grpc/istio]\n")
	certificate, key := selfSigned(t, "localhost")
	secret, err := c.CoreV1().Secrets(namespace).Create(t.Context(), &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: "gateway-tls", Labels: map[string]string{testLabel: "true"}},
		Type:       corev1.SecretTypeTLS,
		Data:       map[string][]byte{corev1.TLSCertKey: certificate, corev1.TLSPrivateKeyKey: key},
	}, metav1.CreateOptions{})
	require.NoError(t, err)
	restore(t, "gateway", func(ctx context.Context) error {
		_, applyErr := c.apply(ctx, original)
		_, _, deleteErr := c.kubectl(ctx, "", "--namespace", namespace, "delete", "--ignore-not-found", "httproute/https-redirect", "grpcroute/service-b")
		return errors.Join(applyErr, deleteErr, c.CoreV1().Secrets(namespace).Delete(ctx, secret.Name, metav1.DeleteOptions{}))
	})
	_, err = c.apply(t.Context(), changed)
	require.NoError(t, err)

	pods, err := c.CoreV1().Pods(namespace).List(t.Context(), metav1.ListOptions{LabelSelector: "gateway.networking.k8s.io/gateway-name=gateway"})
	require.NoError(t, err)
	ready := slices.DeleteFunc(pods.Items, func(p corev1.Pod) bool { return !isReady(p) })
	require.NotEmpty(t, ready)
	// A forwarded port cannot be used again after a connection to it was refused.
	forward := func(port int) string { return c.forward(t, namespace, ready[0].Name, port) }

	roots := x509.NewCertPool()
	require.True(t, roots.AppendCertsFromPEM(certificate))
	client := &http.Client{
		Timeout:       reachTimeout,
		Transport:     &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: "localhost"}},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	eventually(t, time.Minute, "the gateway does not serve HTTPS", func(is *assert.CollectT) {
		secure := strings.Replace(forward(443), "http:", "https:", 1)
		resp, err := client.Get(secure + "/api/data?via=grpc")
		require.NoError(is, err)
		assert.NoError(is, resp.Body.Close())
		assert.Equal(is, http.StatusOK, resp.StatusCode)
		resp, err = client.Get(c.url + "/api/data")
		require.NoError(is, err)
		assert.NoError(is, resp.Body.Close())
		assert.Equal(is, http.StatusMovedPermanently, resp.StatusCode)
		assert.Regexp(is, "^https://.*/api/data$", resp.Header.Get("Location"))
	})

	plain := &http.Client{Timeout: reachTimeout, Transport: &http.Transport{Protocols: new(http.Protocols)}}
	plain.Transport.(*http.Transport).Protocols.SetUnencryptedHTTP2(true)
	grpcStatus := func(is require.TestingT, url, method string) string {
		// The body is one empty message: a byte for compression, and four for the length.
		req, err := http.NewRequestWithContext(context.Background(), http.MethodPost, url+method, bytes.NewReader(make([]byte, 5)))
		require.NoError(is, err)
		req.Header = http.Header{"Content-Type": {"application/grpc"}, "Te": {"trailers"}}
		resp, err := plain.Do(req)
		require.NoError(is, err)
		defer resp.Body.Close() //nolint:errcheck // read to its end
		_, err = io.ReadAll(resp.Body)
		require.NoError(is, err)
		return cmp.Or(resp.Trailer.Get("Grpc-Status"), resp.Header.Get("Grpc-Status"), resp.Status)
	}
	var url string
	eventually(t, time.Minute, "the gateway does not pass gRPC on", func(is *assert.CollectT) {
		url = forward(grpcPort)
		assert.Equal(is, "0", grpcStatus(is, url, "/data.v1.DataService/GetData"))
	})
	assert.NotEqual(t, "0", grpcStatus(t, url, "/grpc.health.v1.Health/Check"))
}

// selfSigned returns a certificate for a host, and its key, as PEM.
func selfSigned(t *testing.T, host string) (certificate, key []byte) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{host}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	require.NoError(t, err)
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	require.NoError(t, err)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})
}

// logLine returns a line with this text that a pod of a service logged in the last minute.
func (c *cluster) logLine(t *testing.T, service, text string) (found string) {
	t.Helper()
	eventually(t, 30*time.Second, service+" logs no line with "+text, func(is *assert.CollectT) {
		for _, pod := range sortedKeys(c.pods(is, service)) {
			for line := range strings.Lines(c.recentLogs(is, pod, service)) {
				if strings.Contains(line, text) {
					found = line
				}
			}
		}
		assert.NotEmpty(is, found)
	})
	return found
}
