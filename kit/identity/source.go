package identity

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"golang.org/x/oauth2"
	"golang.org/x/oauth2/clientcredentials"

	"example.com/tandem/kit/call"
	"example.com/tandem/kit/config"
	"example.com/tandem/kit/telemetry"
)

const (
	// readInterval is how often a token file is read. kubelet replaces a token when a
	// fifth of its lifetime is left, at least two minutes before it expires.
	readInterval = time.Minute
	// renewBefore is how long before its expiry a token of Entra is renewed. Entra's tokens
	// are valid for an hour or more.
	renewBefore = 5 * time.Minute
	// unusableBefore is how long before its expiry a token is no longer sent: it must still
	// be valid when it arrives, by the callee's clock.
	unusableBefore = 10 * time.Second
)

// token is a bearer token that says who calls.
type token struct {
	value  string // secret
	expiry time.Time
}

// Source provides the token of this process for one audience. It is safe for concurrent
// use.
type Source struct {
	cache *cache[token]
	// ClientID is the identity at Entra; empty for a token from a file.
	ClientID string
}

// FromFile returns a source that reads a token from a file, as kubelet writes it for a
// projected ServiceAccount token. The token must be a JWT with an expiry.
func FromFile(path string, tel *telemetry.Telemetry) *Source {
	return &Source{cache: newCache("token", tel, func(context.Context) (loaded[token], error) {
		t, err := readToken(path)
		return usable(t, time.Now().Add(readInterval)), err
	})}
}

// usable returns a token with the times of its use. It is never stale: the callee asks for
// no more than that it has not expired.
func usable(t token, renewAt time.Time) loaded[token] {
	until := t.expiry.Add(-unusableBefore)
	return loaded[token]{value: t, renewAt: renewAt, staleAt: until, usableUntil: until}
}

// readToken reads a token file and the expiry in the token, without verifying the token:
// only the callee's view of it counts.
func readToken(path string) (token, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return token{}, fmt.Errorf("read the token file: %w", err)
	}
	read := token{value: strings.TrimSpace(string(text))}
	var claims struct{ Exp float64 }
	parts := strings.Split(read.value, ".")
	if len(parts) == 3 {
		payload, _ := base64.RawURLEncoding.DecodeString(parts[1]) // if it is malformed, there is no expiry
		_ = json.Unmarshal(payload, &claims)
	}
	if claims.Exp <= 0 || claims.Exp > math.MaxInt32*100 {
		return token{}, fmt.Errorf("token file %s: want a JWT with an expiry", path) // not the contents: they are secret
	}
	read.expiry = time.Unix(int64(claims.Exp), 0)
	return read, nil
}

// Workload holds the settings of a workload identity, which AKS sets in a pod.
type Workload struct {
	ClientID      string  `env:"AZURE_CLIENT_ID" help:"client id of the workload identity; AKS sets this and the next three"`
	TenantID      string  `env:"AZURE_TENANT_ID" help:"its tenant"`
	TokenFile     string  `env:"AZURE_FEDERATED_TOKEN_FILE" help:"file of the pod's token, which Entra exchanges"`
	AuthorityHost url.URL `env:"AZURE_AUTHORITY_HOST" envDefault:"https://login.microsoftonline.com/" help:"URL of Entra"`
}

// Complete reports whether the pod has a workload identity.
func (w Workload) Complete() bool { return w.ClientID != "" && w.TenantID != "" && w.TokenFile != "" }

// Validate returns an error if AuthorityHost is not an https URL: the pod's token is sent
// to it.
func (w Workload) Validate() error {
	if w.AuthorityHost.Scheme != "https" || w.AuthorityHost.Hostname() == "" || w.AuthorityHost.User != nil {
		return config.InvalidURL("AZURE_AUTHORITY_HOST", w.AuthorityHost.String(), "want https://HOST/")
	}
	return nil
}

var errIncomplete = errors.New("AZURE_CLIENT_ID, AZURE_TENANT_ID or AZURE_FEDERATED_TOKEN_FILE is not set: AKS has given this pod no workload identity")

// FromEntra returns a source of Entra's tokens for a scope, such as
// api://service-b/.default. Entra gives them in exchange for the pod's token.
func FromEntra(w Workload, scope string, tel *telemetry.Telemetry) *Source {
	// A redirect would send the pod's token to another host.
	client := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	return &Source{ClientID: w.ClientID, cache: newCache("token", tel, func(ctx context.Context) (loaded[token], error) {
		t, err := w.exchange(context.WithValue(ctx, oauth2.HTTPClient, client), scope)
		return usable(t, t.expiry.Add(-renewBefore)), err
	})}
}

// exchange gets a token from Entra.
func (w Workload) exchange(ctx context.Context, scope string) (token, error) {
	if !w.Complete() {
		return token{}, errIncomplete
	}
	assertion, err := os.ReadFile(w.TokenFile) // each time: kubelet renews it
	if err != nil {
		return token{}, fmt.Errorf("read the federated token file: %w", err)
	}
	request := clientcredentials.Config{
		ClientID:  w.ClientID,
		TokenURL:  w.AuthorityHost.JoinPath(w.TenantID, "oauth2/v2.0/token").String(),
		Scopes:    []string{scope},
		AuthStyle: oauth2.AuthStyleInParams,
		EndpointParams: url.Values{
			"client_assertion_type": {"urn:ietf:params:oauth:client-assertion-type:jwt-bearer"},
			"client_assertion":      {strings.TrimSpace(string(assertion))},
		},
	}
	got, err := request.Token(ctx)
	if refused, ok := errors.AsType[*oauth2.RetrieveError](err); ok {
		// Not the response's body, which may be anything.
		return token{}, fmt.Errorf("get a token for %s from %s: status %d: %s: %s",
			scope, request.TokenURL, refused.Response.StatusCode, telemetry.Truncate(refused.ErrorCode), telemetry.Truncate(refused.ErrorDescription))
	}
	if err != nil {
		return token{}, fmt.Errorf("get a token for %s: %w", scope, err)
	}
	if got.Expiry.IsZero() {
		return token{}, fmt.Errorf("get a token for %s from %s: the response has no expires_in", scope, request.TokenURL)
	}
	return token{got.AccessToken, got.Expiry}, nil
}

// Authorization returns the value of the header authorization for a call. If it has to get a
// token first, it waits for a second at most. The *call.Error of class Token has no reason,
// because callers may pass errors on; the log has the reason.
func (s *Source) Authorization(ctx context.Context) (string, error) {
	token, err := s.cache.get(ctx)
	switch {
	case err == nil:
		return "Bearer " + token.value, nil
	case ctx.Err() != nil:
		return "", context.Cause(ctx)
	default:
		return "", &call.Error{Class: call.Token, Err: errNoOwnToken}
	}
}

var errNoOwnToken = errors.New("this service has no valid token of its own; its log has the reason")

// HealthCheck describes the token: whose it is, and until when it is valid. It is a check
// of package health. A service that requires it has the token before its first call.
func (s *Source) HealthCheck(ctx context.Context) (output string, err error) {
	token, err := s.cache.get(ctx)
	if s.ClientID != "" {
		output = "client id " + s.ClientID + ": "
	}
	if err != nil {
		return "", fmt.Errorf("%sno token: %w", output, err)
	}
	return output + "token valid until " + token.expiry.UTC().Format(time.RFC3339), nil
}
