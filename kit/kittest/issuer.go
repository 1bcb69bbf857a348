package kittest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/stretchr/testify/require"
)

// Issuer is an OpenID Connect issuer on loopback, over TLS.
type Issuer struct {
	URL     string
	CAFile  string       // path of the CA's certificate, as PEM
	Fetches atomic.Int64 // of the keys
	Down    atomic.Bool  // responds 503 to everything
	// Authorization is the header that discovery requires; empty means none. Set it before
	// the first request.
	Authorization string

	mu  sync.Mutex
	key jose.JSONWebKey // private; its public part is the only one that is published
}

// NewIssuer starts an issuer, which runs until the end of the test.
func NewIssuer(t testing.TB) *Issuer {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	require.NoError(t, err)
	i := &Issuer{key: jose.JSONWebKey{Key: key, KeyID: "1", Algorithm: string(jose.RS256), Use: "sig"}}
	server := httptest.NewTLSServer(http.HandlerFunc(i.serve))
	t.Cleanup(server.Close)
	i.URL, i.CAFile = server.URL, filepath.Join(t.TempDir(), "issuer-ca.pem")
	writePEM(t, i.CAFile, "CERTIFICATE", server.Certificate().Raw)
	return i
}

func (i *Issuer) serve(w http.ResponseWriter, r *http.Request) {
	switch {
	case i.Down.Load():
		http.Error(w, "down", http.StatusServiceUnavailable)
	case i.Authorization != "" && r.Header.Get("Authorization") != i.Authorization:
		http.Error(w, "unauthorized", http.StatusUnauthorized)
	case r.URL.Path == "/.well-known/openid-configuration":
		_ = json.NewEncoder(w).Encode(map[string]any{"issuer": i.URL, "jwks_uri": i.URL + "/keys"})
	case r.URL.Path == "/keys":
		i.Fetches.Add(1)
		i.mu.Lock()
		defer i.mu.Unlock()
		// With a key of a type that no library knows: it must not spoil the other.
		_ = json.NewEncoder(w).Encode(map[string]any{"keys": []any{map[string]string{"kty": "new", "kid": "0"}, i.key.Public()}})
	default:
		http.NotFound(w, r)
	}
}

// Rotate replaces the key.
func (i *Issuer) Rotate(t testing.TB) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	i.mu.Lock()
	defer i.mu.Unlock()
	n, _ := strconv.Atoi(i.key.KeyID)
	i.key = jose.JSONWebKey{Key: key, KeyID: strconv.Itoa(n + 1), Algorithm: string(jose.ES256), Use: "sig"}
}

// Token returns a token of the issuer that is valid for an hour. claims are added, and
// replace its own; nil removes one.
func (i *Issuer) Token(t testing.TB, claims map[string]any) string {
	t.Helper()
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.SignWith(t, i.key.Algorithm, i.key, claims)
}

// TokenFile writes a token to a file, as kubelet does.
func (i *Issuer) TokenFile(t testing.TB, claims map[string]any) (path, token string) {
	t.Helper()
	path, token = filepath.Join(t.TempDir(), "token"), i.Token(t, claims)
	require.NoError(t, os.WriteFile(path, []byte(token), 0o600))
	return path, token
}

// SignWith is Token with another algorithm and key.
func (i *Issuer) SignWith(t testing.TB, algorithm string, key any, claims map[string]any) string {
	t.Helper()
	now := time.Now()
	all := map[string]any{"iss": i.URL, "iat": now.Unix(), "nbf": now.Unix(), "exp": now.Add(time.Hour).Unix()}
	maps.Copy(all, claims)
	maps.DeleteFunc(all, func(_ string, value any) bool { return value == nil })
	payload, err := json.Marshal(all)
	require.NoError(t, err)
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.SignatureAlgorithm(algorithm), Key: key}, nil)
	require.NoError(t, err)
	signed, err := signer.Sign(payload)
	require.NoError(t, err)
	token, err := signed.CompactSerialize()
	require.NoError(t, err)
	return token
}
