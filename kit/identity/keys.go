package identity

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/go-jose/go-jose/v4"

	"example.com/tandem/kit/config"
)

const (
	// keysRenewed is the age at which the keys are loaded again, in the background of a call.
	// From the age of keysStale, after a time without calls, a call waits for them. A token of
	// a key that the issuer has withdrawn is therefore accepted for 66 minutes at most:
	// keysStale and minRemembered. There are two exceptions. If the issuer takes longer than
	// staleWait, calls are checked with the old keys until it responds, which is at most
	// loadTimeout. If it cannot be reached, the keys are used for keysUsable: calls go on
	// during an outage of the issuer.
	keysRenewed, keysStale, keysUsable = time.Hour, 65 * time.Minute, 24 * time.Hour
	// reloadInterval is how soon the keys are loaded again for a token with an unknown key.
	// Anybody can make such tokens, so the reloads are limited as well (reloadBurst): tokens of
	// a new key are refused for a second at most, and for ten during an attack.
	reloadInterval = time.Second
	// maxDocument is the size limit of the issuer's responses, in bytes.
	maxDocument = 1 << 20
)

// algorithms are those of the API server and of Entra. All are asymmetric: with a
// symmetric one, who can verify a token could also make one.
var algorithms = []jose.SignatureAlgorithm{jose.RS256, jose.ES256, jose.ES384, jose.ES512}

// errUnknownKey means that no key of the issuer has the id that the token names.
var errUnknownKey = errors.New("the issuer has no such key")

// keys are the keys of the issuer.
type keys struct {
	jose.JSONWebKeySet
	loaded time.Time
}

// keySet implements oidc.KeySet for one token. (oidc.RemoteKeySet loads the keys again for
// every unknown id.)
type keySet struct {
	cache          *cache[keys]
	reloadInterval time.Duration
	used           keys  // for the signature
	loadErr        error // the keys cannot be loaded. Package oidc passes on the text of an error only
}

// VerifySignature returns the payload of a token that a key of the issuer signed.
func (k *keySet) VerifySignature(ctx context.Context, token string) ([]byte, error) {
	signed, err := jose.ParseSignedCompact(token, algorithms)
	if err != nil {
		return nil, err
	}
	k.used, err = k.cache.get(ctx)
	if err == nil {
		var payload []byte
		if payload, err = k.used.verify(signed); !errors.Is(err, errUnknownKey) {
			return payload, err
		}
		k.used, err = k.cache.reload(ctx, k.reloadInterval)
	}
	if err != nil {
		k.loadErr = err
		return nil, err
	}
	return k.used.verify(signed)
}

func (k keys) verify(signed *jose.JSONWebSignature) ([]byte, error) {
	err := errUnknownKey
	for _, key := range k.Key(signed.Signatures[0].Header.KeyID) { // package oidc has checked that there is one signature
		var payload []byte
		if payload, err = signed.Verify(key); err == nil {
			return payload, nil
		}
	}
	return nil, err
}

// loadKeys gets the issuer's keys. All files are read anew: kubelet renews them.
func (i Issuer) loadKeys(ctx context.Context) (loaded[keys], error) {
	var none loaded[keys]
	client, err := i.client()
	if err != nil {
		return none, err
	}
	defer client.CloseIdleConnections()
	provider, err := oidc.NewProvider(oidc.ClientContext(ctx, client), i.URL)
	if err != nil {
		return none, err
	}
	var document struct {
		KeysURL string `json:"jwks_uri"`
	}
	if err := provider.Claims(&document); err != nil {
		return none, err
	}
	if u, err := url.Parse(document.KeysURL); err != nil || u.Scheme != "https" {
		return none, fmt.Errorf("jwks_uri %q: want an https URL", document.KeysURL)
	}
	set, err := getKeys(ctx, client, document.KeysURL)
	if err != nil {
		return none, fmt.Errorf("get %s: %w", document.KeysURL, err)
	}
	now := time.Now()
	return loaded[keys]{
		value:       keys{set, now},
		renewAt:     now.Add(keysRenewed),
		staleAt:     now.Add(keysStale),
		usableUntil: now.Add(keysUsable),
	}, nil
}

func getKeys(ctx context.Context, client *http.Client, url string) (set jose.JSONWebKeySet, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return set, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return set, err
	}
	defer resp.Body.Close() //nolint:errcheck // the connection is closed next
	if resp.StatusCode != http.StatusOK {
		return set, fmt.Errorf("status %d", resp.StatusCode)
	}
	var body struct{ Keys []json.RawMessage }
	if err := json.NewDecoder(resp.Body).Decode(&body); err != nil {
		return set, err
	}
	for _, raw := range body.Keys {
		var key jose.JSONWebKey
		// A key of an unknown type does not spoil the others.
		if json.Unmarshal(raw, &key) == nil && key.IsPublic() {
			set.Keys = append(set.Keys, key)
		}
	}
	if len(set.Keys) == 0 {
		return set, errors.New("it has no usable key")
	}
	return set, nil
}

// client returns a client for one load.
func (i Issuer) client() (*http.Client, error) {
	transport := &issuerTransport{base: http.DefaultTransport.(*http.Transport).Clone()}
	var err error
	if transport.base.TLSClientConfig, err = (config.ClientTLS{CAFile: i.CAFile}).Config(); err != nil {
		return nil, err
	}
	if i.TokenFile != "" {
		token, err := os.ReadFile(i.TokenFile)
		if err != nil {
			return nil, fmt.Errorf("read the token file: %w", err)
		}
		transport.authorization = "Bearer " + strings.TrimSpace(string(token))
	}
	// A redirect could send the token to another host.
	return &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}, nil
}

// issuerTransport adds the token, and limits the size of responses: package oidc reads
// them whole.
type issuerTransport struct {
	base          *http.Transport
	authorization string
}

func (t *issuerTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	if t.authorization != "" {
		req = req.Clone(req.Context())
		req.Header.Set("Authorization", t.authorization)
	}
	resp, err := t.base.RoundTrip(req)
	if err == nil {
		resp.Body = struct {
			io.Reader
			io.Closer
		}{io.LimitReader(resp.Body, maxDocument), resp.Body}
	}
	return resp, err
}

// CloseIdleConnections is called by the method of http.Client.
func (t *issuerTransport) CloseIdleConnections() { t.base.CloseIdleConnections() }
