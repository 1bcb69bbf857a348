package httpserver_test

import (
	"context"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"example.com/tandem/kit/httpserver"
	"example.com/tandem/kit/identity"
	"example.com/tandem/kit/kittest"
	"example.com/tandem/kit/limiter"
)

// acceptOnly returns options of a server that accepts the subject "friend" only.
func acceptOnly(t *testing.T, issuer *kittest.Issuer) httpserver.Options {
	tel := kittest.Telemetry(t, io.Discard)
	return httpserver.Options{Callers: identity.NewVerifier(identity.Issuer{URL: issuer.URL, CAFile: issuer.CAFile}, "b", []string{"friend"}, tel)}
}

// An unknown caller gets 401 or 403 from every route except those of Probes, and does not
// count towards the concurrency limit. Without the issuer nobody is accepted, and a retry
// may help.
func TestServer_AcceptsKnownCallersOnly(t *testing.T) {
	t.Parallel()
	issuer := kittest.NewIssuer(t)
	o := acceptOnly(t, issuer)
	o.Limiter = limiter.New(1, kittest.Telemetry(t, io.Discard).Metrics)
	require.NoError(t, o.Limiter.Acquire(t.Context())) // the limit is reached
	s := serve(t, o, func(s *httpserver.Server) {
		s.API.Get("/api", hello)
		s.Streams.Get("/stream", hello)
		s.Control.Get("/control", hello)
		s.ControlStreams.Get("/control-stream", hello)
	})
	friend := issuer.Token(t, map[string]any{"aud": "b", "sub": "friend"})
	get := func(path, token string) (int, http.Header, string) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.URL+path, nil)
		require.NoError(t, err)
		if token != "" {
			req.Header.Set("Authorization", "Bearer "+token)
		}
		return kittest.Do(t, req)
	}
	issuer.Down.Store(true)
	code, _, body := get("/api", friend)
	assert.Equal(t, http.StatusServiceUnavailable, code)
	assert.Contains(t, body, `"detail":"the bearer token cannot be checked now","class":"unavailable"`)
	issuer.Down.Store(false)
	for _, path := range []string{"/api", "/stream"} {
		kittest.Eventually(t, func() bool {
			_, _, body := get(path, friend)
			return strings.Contains(body, limiter.ErrFull.Error()) // the friend's request reaches the limit
		}, "the friend is not accepted")

		code, header, body := get(path, "")
		assert.Equal(t, http.StatusUnauthorized, code)
		assert.Equal(t, "Bearer", header.Get("WWW-Authenticate"))
		assert.Equal(t, "application/problem+json", header.Get("Content-Type"))
		assert.Contains(t, body, `"detail":"a bearer token is required","class":"denied"`)

		code, header, _ = get(path, issuer.Token(t, map[string]any{"aud": "c", "sub": "friend"}))
		assert.Equal(t, http.StatusUnauthorized, code)
		assert.Equal(t, `Bearer error="invalid_token"`, header.Get("WWW-Authenticate"))

		code, _, body = get(path, issuer.Token(t, map[string]any{"aud": "b", "sub": "intruder"}))
		assert.Equal(t, http.StatusForbidden, code)
		assert.NotContains(t, body, "intruder")
	}
	for _, path := range []string{"/control", "/control-stream"} { // the limit does not apply to these
		code, _, _ := get(path, friend)
		assert.Equal(t, http.StatusOK, code, path)
		code, _, _ = get(path, "")
		assert.Equal(t, http.StatusUnauthorized, code, path)
	}
	for _, path := range []string{"/livez", "/readyz", "/health"} {
		code, _, _ := get(path, "")
		assert.Equal(t, http.StatusOK, code, path)
	}
}

// The context of a stream ends when the caller's token expires.
func TestServer_StreamEndsWithToken(t *testing.T) {
	t.Parallel()
	issuer := kittest.NewIssuer(t)
	cause := make(chan error, 1)
	s := serve(t, acceptOnly(t, issuer), func(s *httpserver.Server) {
		s.Streams.Get("/stream", func(_ http.ResponseWriter, r *http.Request) {
			<-r.Context().Done()
			cause <- context.Cause(r.Context())
		})
	})
	// Accepted for a few seconds: 30 s of tolerance for clocks.
	token := issuer.Token(t, map[string]any{"aud": "b", "sub": "friend", "exp": time.Now().Add(-27 * time.Second).Unix()})
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.URL+"/stream", nil)
	require.NoError(t, err)
	req.Header.Set("Authorization", "Bearer "+token)
	code, _, _ := kittest.Do(t, req)
	require.Equal(t, http.StatusOK, code)
	assert.Equal(t, identity.ErrExpired, <-cause)
}
