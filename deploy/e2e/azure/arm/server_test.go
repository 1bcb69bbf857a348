package arm

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const (
	groupURL    = "/subscriptions/" + Subscription + "/resourceGroups/g"
	registryURL = groupURL + "/providers/Microsoft.ContainerRegistry/registries/r"
)

// client sends requests as az does.
type client struct {
	*Server
	http *http.Client
	t    *testing.T
}

func startServer(t *testing.T) client {
	t.Helper()
	folder := t.TempDir()
	s, err := Start(folder, Options{})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, s.Close()) })
	authority, err := os.ReadFile(filepath.Join(folder, "ca.pem"))
	require.NoError(t, err)
	pool := x509.NewCertPool()
	require.True(t, pool.AppendCertsFromPEM(authority))
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}
	t.Cleanup(transport.CloseIdleConnections)
	return client{s, &http.Client{Transport: transport}, t}
}

func (c client) send(method, path string, body any) (int, http.Header, object) {
	c.t.Helper()
	encoded, err := json.Marshal(body)
	require.NoError(c.t, err)
	if path[0] == '/' {
		path = c.url + path
	}
	request, err := http.NewRequest(method, path, bytes.NewReader(encoded))
	require.NoError(c.t, err)
	answer, err := c.http.Do(request)
	require.NoError(c.t, err)
	defer func() { _ = answer.Body.Close() }()
	raw, err := io.ReadAll(answer.Body)
	require.NoError(c.t, err)
	var decoded object
	_ = json.Unmarshal(raw, &decoded)
	return answer.StatusCode, answer.Header, decoded
}

// An operation reports InProgress twice, and the resource is Creating meanwhile.
func TestPut_TakesTwoPolls(t *testing.T) {
	c := startServer(t)
	status, _, _ := c.send(http.MethodPut, registryURL, object{})
	assert.Equal(t, http.StatusNotFound, status, "without its group")
	c.send(http.MethodPut, groupURL, object{"location": "eastus2"})
	status, header, body := c.send(http.MethodPut, registryURL, object{"location": "eastus2"})
	assert.Equal(t, http.StatusCreated, status)
	assert.Equal(t, "Creating", child(body, "properties")["provisioningState"])
	operation := header.Get("Azure-AsyncOperation")
	for _, want := range []string{"InProgress", "InProgress", "Succeeded", "Succeeded"} {
		_, _, body := c.send(http.MethodGet, operation, nil)
		assert.Equal(t, want, body["status"])
	}
	_, _, body = c.send(http.MethodGet, "/SUBSCRIPTIONS"+registryURL[len("/subscriptions"):], nil)
	assert.Equal(t, "Succeeded", child(body, "properties")["provisioningState"], "paths in any case name one resource")
}

// Deleting a group deletes what is in it.
func TestDelete_GroupWithContents(t *testing.T) {
	c := startServer(t)
	c.send(http.MethodPut, groupURL, object{"location": "eastus2"})
	c.send(http.MethodPut, registryURL, object{})
	status, header, _ := c.send(http.MethodDelete, groupURL, nil)
	assert.Equal(t, http.StatusAccepted, status)
	for range pollsOfOperation + 1 {
		c.send(http.MethodGet, header.Get("Azure-AsyncOperation"), nil)
	}
	assert.Empty(t, c.Resources())
	status, _, _ = c.send(http.MethodDelete, groupURL, nil)
	assert.Equal(t, http.StatusNotFound, status)
}

// A fault fails the chosen requests only. One without a status makes the operation fail.
func TestInject_ChosenRequests(t *testing.T) {
	c := startServer(t)
	c.send(http.MethodPut, groupURL, object{"location": "eastus2"})
	c.Inject(Fault{Method: http.MethodPut, Path: "/registries/", Skip: 1, Times: 1, Status: 429, Code: "TooManyRequests", Header: map[string]string{"Retry-After": "1"}})
	var got []int
	for range 3 {
		status, _, _ := c.send(http.MethodPut, registryURL, object{})
		got = append(got, status)
	}
	assert.Equal(t, []int{http.StatusCreated, http.StatusTooManyRequests, http.StatusOK}, got)

	c.Repair()
	c.Inject(Fault{Path: "/registries/", Code: "Broken", Message: "it broke"})
	status, header, _ := c.send(http.MethodPut, registryURL, object{})
	assert.Equal(t, http.StatusOK, status)
	var body object
	for range pollsOfOperation + 1 {
		_, _, body = c.send(http.MethodGet, header.Get("Azure-AsyncOperation"), nil)
	}
	assert.Equal(t, "Failed", body["status"])
	assert.Equal(t, "Broken", child(body, "error")["code"])
	_, _, body = c.send(http.MethodGet, registryURL, nil)
	assert.Equal(t, "Failed", child(body, "properties")["provisioningState"])
}

// An unregistered provider, a taken name and a caller without the right are refused.
func TestPut_RefusedAsByAzure(t *testing.T) {
	c := startServer(t)
	c.send(http.MethodPut, groupURL, object{"location": "eastus2"})
	refused := func(path, code string) {
		t.Helper()
		_, _, body := c.send(http.MethodPut, path, object{})
		assert.Equal(t, code, child(body, "error")["code"])
	}
	c.Unregister("Microsoft.ContainerRegistry")
	refused(registryURL, "MissingSubscriptionRegistration")
	c.send(http.MethodPost, "/subscriptions/"+Subscription+"/providers/Microsoft.ContainerRegistry/register", nil)
	c.TakeRegistryName("R")
	refused(registryURL, "AlreadyInUse")
	c.DemoteCaller()
	refused(groupURL+"/providers/Microsoft.Authorization/roleAssignments/1", "AuthorizationFailed")
}

// Changes leaves out what only reads, such as POSTs that list.
func TestChanges_LeavesOutReads(t *testing.T) {
	c := startServer(t)
	c.send(http.MethodPut, groupURL, object{"location": "eastus2"})
	c.send(http.MethodGet, groupURL, nil)
	c.send(http.MethodPost, "/subscriptions/"+Subscription+"/providers/Microsoft.ContainerRegistry/checkNameAvailability", object{"name": "r"})
	require.Len(t, c.Changes(), 1)
	assert.Equal(t, map[string]any{"location": "eastus2"}, c.Changes()[0].Body)
	assert.Len(t, c.Requests(), 3)
}

// The log of a run has the line ends that az expects, and its writer reports what it was
// given, so that copies to it go on.
func TestRun_WritesLines(t *testing.T) {
	c := startServer(t)
	r := &run{server: c.Server, log: &blob{}}
	n, err := r.Write([]byte("a\nb\n"))
	require.NoError(t, err)
	assert.Equal(t, 4, n)
	assert.Equal(t, "a\r\nb\r\n", r.log.content.String())
}
