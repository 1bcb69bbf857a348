package identity_test

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"example.com/tandem/kit/call"
	"example.com/tandem/kit/identity"
	"example.com/tandem/kit/kittest"
)

func write(t *testing.T, text string) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "token")
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	return path
}

// A token file is sent as it is. Without a valid token, calls fail with class token, and
// the log has the reason, but not the contents of the file.
func TestFromFile_ReadsToken(t *testing.T) {
	issuer := kittest.NewIssuer(t)
	token := issuer.Token(t, claims())
	s := identity.FromFile(write(t, token+"\n"), kittest.Telemetry(t, io.Discard))
	header, err := s.Authorization(t.Context())
	require.NoError(t, err)
	assert.Equal(t, "Bearer "+token, header)
	output, err := s.HealthCheck(t.Context())
	require.NoError(t, err)
	assert.Regexp(t, `^token valid until 2\d{3}-`, output)

	for name, c := range map[string]struct{ path, reason string }{
		"missing":   {filepath.Join(t.TempDir(), "none"), "no such file"},
		"empty":     {write(t, ""), "want a JWT"},
		"not a JWT": {write(t, "a.secret.text"), "want a JWT"},
		"expired":   {write(t, issuer.Token(t, claims("exp", time.Now().Unix()))), "expired"},
	} {
		t.Run(name, func(t *testing.T) {
			var log kittest.Buffer
			s := identity.FromFile(c.path, kittest.Telemetry(t, &log))
			_, err := s.Authorization(t.Context())
			assert.Equal(t, call.Token, call.ClassOf(err))
			assert.NotContains(t, err.Error(), c.path)
			_, err = s.HealthCheck(t.Context())
			require.ErrorContains(t, err, c.reason)
			assert.Contains(t, log.String(), c.reason)
			assert.NotContains(t, log.String(), "secret")
		})
	}
}

// entra is the token endpoint of Entra on loopback.
type entra struct {
	url       url.URL
	exchanges atomic.Int64
	respond   atomic.Pointer[func(http.ResponseWriter)]
	mu        sync.Mutex
	forms     []map[string][]string
}

func newEntra(t *testing.T) *entra {
	t.Helper()
	e := &entra{}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		e.exchanges.Add(1)
		assert.Equal(t, "/tenant/oauth2/v2.0/token", r.URL.Path)
		assert.NoError(t, r.ParseForm())
		e.mu.Lock()
		e.forms = append(e.forms, r.PostForm)
		e.mu.Unlock()
		w.Header().Set("Content-Type", "application/json")
		(*e.respond.Load())(w)
	}))
	t.Cleanup(server.Close)
	u, err := url.Parse(server.URL)
	require.NoError(t, err)
	e.url = *u
	e.expiresIn(3600)
	return e
}

// expiresIn lets the endpoint return tokens with this lifetime in seconds.
func (e *entra) expiresIn(seconds int) {
	respond := func(w http.ResponseWriter) {
		_ = json.NewEncoder(w).Encode(map[string]any{"access_token": "of-entra", "token_type": "Bearer", "expires_in": seconds})
	}
	e.respond.Store(&respond)
}

func (e *entra) fail(status int, body string) {
	respond := func(w http.ResponseWriter) {
		w.Header().Set("Location", "http://127.0.0.1:1/")
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}
	e.respond.Store(&respond)
}

// The pod's token is exchanged for a token of Entra, once for all concurrent callers.
func TestFromEntra_ExchangesOnce(t *testing.T) {
	e := newEntra(t)
	file := write(t, "of-the-pod\n")
	s := identity.FromEntra(identity.Workload{ClientID: "client", TenantID: "tenant", TokenFile: file, AuthorityHost: e.url},
		"api://service-b/.default", kittest.Telemetry(t, io.Discard))
	var all sync.WaitGroup
	for range 50 {
		all.Go(func() {
			header, err := s.Authorization(t.Context())
			assert.NoError(t, err)
			assert.Equal(t, "Bearer of-entra", header)
		})
	}
	all.Wait()
	require.Len(t, e.forms, 1)
	assert.Equal(t, map[string][]string{
		"grant_type":            {"client_credentials"},
		"client_id":             {"client"},
		"scope":                 {"api://service-b/.default"},
		"client_assertion_type": {"urn:ietf:params:oauth:client-assertion-type:jwt-bearer"},
		"client_assertion":      {"of-the-pod"},
	}, e.forms[0])
	output, err := s.HealthCheck(t.Context())
	require.NoError(t, err)
	assert.Contains(t, output, "client id client: token valid until")
	assert.NotContains(t, output, "of-entra")
}

// When a token can no longer be sent, the next call exchanges again, with the pod's
// token of that time.
func TestFromEntra_RenewsWithNewAssertion(t *testing.T) {
	e := newEntra(t)
	e.expiresIn(11) // can be sent for a second
	file := write(t, "first")
	s := identity.FromEntra(identity.Workload{ClientID: "c", TenantID: "tenant", TokenFile: file, AuthorityHost: e.url}, "s", kittest.Telemetry(t, io.Discard))
	_, err := s.Authorization(t.Context())
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(file, []byte("second"), 0o600))
	kittest.Eventually(t, func() bool {
		_, err := s.Authorization(t.Context())
		return err == nil && e.exchanges.Load() > 1
	}, "no second exchange")
	e.mu.Lock()
	defer e.mu.Unlock()
	assert.Equal(t, []string{"second"}, e.forms[1]["client_assertion"])
}

// Entra's refusal fails the calls with class token and is in the log. Calls during the
// backoff make no exchange. A redirect is not followed: it would pass on the pod's token.
func TestFromEntra_FailureMakesNoStorm(t *testing.T) {
	for name, c := range map[string]struct {
		status       int
		body, reason string
	}{
		"refused":     {401, `{"error":"invalid_client","error_description":"AADSTS70021: no matching identity"}`, "AADSTS70021"},
		"redirected":  {307, "", "307"},
		"down":        {503, "secret", "503"},
		"no lifetime": {200, `{"access_token":"secret"}`, "expires_in"},
		"not JSON":    {200, "hello", "parse"},
		"short-lived": {200, `{"access_token":"secret","expires_in":5}`, "expired"},
		"empty":       {200, "{}", "access_token"},
	} {
		t.Run(name, func(t *testing.T) {
			e := newEntra(t)
			e.fail(c.status, c.body)
			var log kittest.Buffer
			s := identity.FromEntra(identity.Workload{ClientID: "c", TenantID: "tenant", TokenFile: write(t, "of-the-pod"), AuthorityHost: e.url},
				"s", kittest.Telemetry(t, &log))
			for range 100 {
				_, err := s.Authorization(t.Context())
				require.Equal(t, call.Token, call.ClassOf(err), "%v", err)
			}
			assert.LessOrEqual(t, e.exchanges.Load(), int64(2), "a slow machine may take longer than the first backoff")
			assert.Contains(t, log.String(), c.reason)
			assert.NotContains(t, log.String(), "secret")
			assert.NotContains(t, log.String(), "of-the-pod")
		})
	}
}

// A call whose context ends does not wait for Entra.
func TestFromEntra_EndsWithItsContext(t *testing.T) {
	e := newEntra(t)
	release := make(chan struct{})
	respond := func(http.ResponseWriter) { <-release }
	e.respond.Store(&respond)
	s := identity.FromEntra(identity.Workload{ClientID: "c", TenantID: "tenant", TokenFile: write(t, "x"), AuthorityHost: e.url}, "s", kittest.Telemetry(t, io.Discard))
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := s.Authorization(ctx)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	close(release)
	_, err = s.Authorization(t.Context()) // waits for the load, so that it does not outlive the test
	require.Error(t, err)
}

// A pod without a workload identity is told so.
func TestFromEntra_NeedsWorkloadIdentity(t *testing.T) {
	s := identity.FromEntra(identity.Workload{}, "s", kittest.Telemetry(t, io.Discard))
	_, err := s.HealthCheck(t.Context())
	require.ErrorContains(t, err, "AZURE_CLIENT_ID")
}
