package main

import (
	"bufio"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"example.com/tandem/kit/kittest"
)

// startGuardedB starts a service-b that accepts the subject "friend" of an issuer only, and
// returns the issuer and service-b's name.
func startGuardedB(t *testing.T) (*kittest.Issuer, string) {
	t.Helper()
	issuer := kittest.NewIssuer(t)
	name, addr := hostOf(t), kittest.Loopbacks(t, 1)[0]
	startB(t, "b-1", addr, "CALLER_ISSUER="+issuer.URL, "CALLER_ISSUER_CA_FILE="+issuer.CAFile, "CALLER_AUDIENCE=service-b", "CALLER_SUBJECTS=other,friend")
	dns.Set(name, addr)
	return issuer, name
}

// tokenFile writes a token of the issuer to a file.
func tokenFile(t *testing.T, issuer *kittest.Issuer, audience, subject string) (path string) {
	t.Helper()
	path, _ = issuer.TokenFile(t, map[string]any{"aud": audience, "sub": subject})
	return path
}

// Over both transports, service-b accepts service-a by its token. /health shows until when
// the token is valid. A call that service-b refuses has the class denied.
func TestPair_ServiceBKnowsItsCaller(t *testing.T) {
	t.Parallel()
	issuer, name := startGuardedB(t)
	for caller, c := range map[string]struct {
		file   string // "" is none
		status int
		class  string
	}{
		"accepted":             {tokenFile(t, issuer, "service-b", "friend"), http.StatusOK, ""},
		"without token":        {"", http.StatusBadGateway, "denied"},
		"for another audience": {tokenFile(t, issuer, "service-c", "friend"), http.StatusBadGateway, "denied"},
		"another subject":      {tokenFile(t, issuer, "service-b", "intruder"), http.StatusBadGateway, "denied"},
	} {
		t.Run(caller, func(t *testing.T) {
			a := startA(t, name, "SERVICE_B_TOKEN_FILE="+c.file, "HEALTH_DETAILS=on")
			for _, via := range transports {
				code, _, got := getData(t, a, "via="+via)
				assert.Equal(t, c.status, code, "%s: %s", via, got.Detail)
				assert.Equal(t, c.class, got.Class, via)
			}
			_, _, health := kittest.Get(t, a.URL+"/health")
			if c.class == "" {
				assert.Contains(t, health, `"output":"token valid until 2`)
			}
		})
	}
}

// service-a is not ready before it has a token. Until then, /health and the log have the
// reason, and a call fails with the class token. Without the file later, it stays ready.
func TestReady_NeedsToken(t *testing.T) {
	t.Parallel()
	issuer, name := startGuardedB(t)
	file := filepath.Join(t.TempDir(), "none")
	a := kittest.Launch(t, run, environA(name, "SERVICE_B_TOKEN_FILE="+file, "HEALTH_DETAILS=on"))
	kittest.Eventually(t, func() bool { return strings.Contains(a.Log.String(), "not ready yet") }, "the log has the reason")
	assert.Contains(t, a.Log.String(), `"missing":"token for service-b","reason":"no token: read the token file: `)
	code, _, body := kittest.Get(t, a.URL+"/readyz")
	assert.Equal(t, http.StatusServiceUnavailable, code)
	assert.Equal(t, "starting: waiting for token for service-b\n", body)
	_, _, body = kittest.Get(t, a.URL+"/health")
	assert.Contains(t, body, `"token for service-b":[{"status":"warn"`)
	assert.Contains(t, body, "no token: read the token file")
	for _, via := range transports {
		code, _, got := getData(t, a, "via="+via)
		assert.Equal(t, http.StatusServiceUnavailable, code, via)
		assert.Equal(t, "token", got.Class, via)
		assert.NotContains(t, got.Detail, "none", "the path of the file")
	}

	require.NoError(t, os.Rename(tokenFile(t, issuer, "service-b", "friend"), file))
	kittest.AwaitReady(t, a.URL)
	for _, via := range transports {
		code, _, got := getData(t, a, "via="+via)
		assert.Equal(t, http.StatusOK, code, "the first call of a ready service-a: %s", got.Detail)
	}
	require.NoError(t, os.Remove(file))
	code, _, body = kittest.Get(t, a.URL+"/readyz")
	assert.Equal(t, http.StatusOK, code, body)
}

// A stream of a caller that is refused ends with its class.
func TestPair_GuardedStream(t *testing.T) {
	t.Parallel()
	issuer, name := startGuardedB(t)
	for subject, want := range map[string]string{"friend": `"sequence":`, "intruder": `"class":"denied"`} {
		a := startA(t, name, "SERVICE_B_TOKEN_FILE="+tokenFile(t, issuer, "service-b", subject))
		assert.Contains(t, firstEvent(t, a), want, subject)
	}
}

// Without a workload identity, and if Entra cannot be reached, /health warns and names the
// client id. service-a stays ready.
func TestHealth_ChecksWorkloadIdentity(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "token")
	require.NoError(t, os.WriteFile(file, []byte("of-the-pod"), 0o600))
	id := "11111111-2222-3333-4444-555555555555"
	for want, environ := range map[string][]string{
		"AKS has given this pod no workload identity": nil,
		"client id " + id + ": no token: ": {
			"AZURE_CLIENT_ID=" + id, "AZURE_TENANT_ID=t", "AZURE_FEDERATED_TOKEN_FILE=" + file,
			fmt.Sprintf("AZURE_AUTHORITY_HOST=https://127.0.0.1:%s/", kittest.FreePort()),
		},
	} {
		a := startA(t, hostOf(t), append(environ, "IDENTITY_CHECK_SCOPE=https://management.azure.com/.default", "HEALTH_DETAILS=on")...)
		code, _, body := kittest.Get(t, a.URL+"/health")
		assert.Equal(t, http.StatusOK, code)
		assert.Contains(t, body, `"workload identity":[{"status":"warn"`)
		assert.Contains(t, body, want)
		assert.NotContains(t, body, "of-the-pod")
	}
}

// firstEvent returns the data of the first event of a stream.
func firstEvent(t *testing.T, a *kittest.Service) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, a.URL+"/api/stream?interval=100ms", nil)
	require.NoError(t, err)
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	resp, err := transport.RoundTrip(req)
	require.NoError(t, err)
	defer resp.Body.Close() //nolint:errcheck // one event is enough
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		if data, ok := strings.CutPrefix(lines.Text(), "data: "); ok {
			return data
		}
	}
	require.Fail(t, "the stream has no event")
	return ""
}
