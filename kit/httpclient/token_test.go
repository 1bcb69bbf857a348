package httpclient_test

import (
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"

	"example.com/tandem/kit/call"
	"example.com/tandem/kit/httpclient"
	"example.com/tandem/kit/identity"
	"example.com/tandem/kit/kittest"
)

// Every attempt sends the token. It is not sent on to where a response redirects.
func TestToken_SentToTheServiceOnly(t *testing.T) {
	t.Parallel()
	file, token := kittest.NewIssuer(t).TokenFile(t, nil)
	elsewhere, others := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) { ok(w, r) })
	url, requests := serve(t, func(n int, w http.ResponseWriter, r *http.Request) {
		assert.Equal(t, "Bearer "+token, r.Header.Get("Authorization"))
		if n == 1 {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		http.Redirect(w, r, elsewhere, http.StatusTemporaryRedirect)
	})
	client := newClient(t, httpclient.Options{Token: identity.FromFile(file, kittest.Telemetry(t, io.Discard))})
	got := get(t, client, url)
	assert.Equal(t, http.StatusTemporaryRedirect, got.status)
	assert.EqualValues(t, 2, requests.Load())
	assert.Zero(t, others.Load())
}

// Without a token nothing is sent, and the call fails with a class of its own.
func TestToken_MissingFailsTheCall(t *testing.T) {
	t.Parallel()
	url, requests := serve(t, func(_ int, w http.ResponseWriter, r *http.Request) { ok(w, r) })
	tel := kittest.Telemetry(t, io.Discard)
	client := newClient(t, httpclient.Options{Telemetry: tel, Token: identity.FromFile(filepath.Join(t.TempDir(), "none"), tel)})
	got := get(t, client, url)
	assert.Equal(t, call.Token, got.class, "%v", got.err)
	assert.Zero(t, requests.Load())
	assert.Contains(t, kittest.Scrape(t, tel), `client_calls_total{outcome="token",peer="127.0.0.1",transport="http"} 1`)

	body := &closed{Reader: strings.NewReader("x")}
	do(client, request(t, t.Context(), http.MethodPost, url, body))
	assert.True(t, body.closed, "a RoundTripper closes the body")
}

// closed is a body that knows whether it was closed.
type closed struct {
	io.Reader
	closed bool
}

func (c *closed) Close() error {
	c.closed = true
	return nil
}
