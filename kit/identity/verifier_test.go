package identity_test

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"example.com/tandem/kit/identity"
	"example.com/tandem/kit/kittest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	audience = "service-b"
	subject  = "system:serviceaccount:tandem:service-a"
)

// claims are those of a valid token, with changes: pairs of a name and a value.
func claims(changes ...any) map[string]any {
	out := map[string]any{"aud": []string{audience}, "sub": subject}
	for i := 0; i < len(changes); i += 2 {
		out[changes[i].(string)] = changes[i+1]
	}
	return out
}

// newVerifier returns a verifier of the issuer's tokens, which logs to log.
func newVerifier(t testing.TB, i *kittest.Issuer, log io.Writer) *identity.Verifier {
	t.Helper()
	tel := kittest.Telemetry(t, log)
	v := identity.NewVerifier(identity.Issuer{URL: i.URL, CAFile: i.CAFile}, audience, []string{"other", subject}, tel)
	t.Cleanup(func() { kittest.Scrape(t, tel) })
	return v
}

func verify(t testing.TB, v *identity.Verifier, token string) error {
	t.Helper()
	_, err := v.Verify(t.Context(), "Bearer "+token)
	return err
}

// Only a token of the issuer, for the audience, of an allowed subject, that has not
// expired and is signed with an asymmetric key, is accepted. The caller learns only the
// kind of the error, the log has the reason, and neither has the token.
func TestVerify_AcceptsOnlyValidTokens(t *testing.T) {
	issuer := kittest.NewIssuer(t)
	stranger := kittest.NewIssuer(t)
	secret := jose.JSONWebKey{Key: []byte(strings.Repeat("k", 32)), KeyID: "1"}
	unsigned := func() string {
		payload := strings.Split(issuer.Token(t, claims()), ".")[1]
		return base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none","kid":"1"}`)) + "." + payload + "."
	}
	ago := func(d time.Duration) int64 { return time.Now().Add(-d).Unix() }
	for name, c := range map[string]struct {
		token  string
		err    error
		reason string // in the log
	}{
		"valid":                       {token: issuer.Token(t, claims())},
		"one of several audiences":    {token: issuer.Token(t, claims("aud", []string{"x", audience}))},
		"expired within the skew":     {token: issuer.Token(t, claims("exp", ago(10*time.Second)))},
		"expired":                     {issuer.Token(t, claims("exp", ago(time.Minute))), identity.ErrInvalidToken, "expired"},
		"without expiry":              {issuer.Token(t, claims("exp", nil)), identity.ErrInvalidToken, "expired"},
		"not valid yet":               {issuer.Token(t, claims("nbf", ago(-time.Hour))), identity.ErrInvalidToken, "nbf"},
		"for another audience":        {issuer.Token(t, claims("aud", "service-c")), identity.ErrInvalidToken, "audience"},
		"of another issuer":           {stranger.Token(t, claims()), identity.ErrInvalidToken, "verify"},
		"that names another issuer":   {issuer.Token(t, claims("iss", stranger.URL)), identity.ErrInvalidToken, "issue"},
		"signed by another's key":     {stranger.Token(t, claims("iss", issuer.URL)), identity.ErrInvalidToken, "verify"},
		"of another subject":          {issuer.Token(t, claims("sub", "system:serviceaccount:tandem:web")), identity.ErrDenied, "tandem:web"},
		"without subject":             {issuer.Token(t, claims("sub", nil)), identity.ErrDenied, "subject"},
		"unsigned":                    {unsigned(), identity.ErrInvalidToken, "algorithm"},
		"signed with a shared secret": {issuer.SignWith(t, "HS256", secret, claims()), identity.ErrInvalidToken, "algorithm"},
		"not a JWT":                   {"secret", identity.ErrInvalidToken, "malformed"},
		"too large":                   {strings.Repeat("x", 16<<10+1), identity.ErrInvalidToken, "too large"},
	} {
		t.Run(name, func(t *testing.T) {
			var log kittest.Buffer
			v := newVerifier(t, issuer, &log)
			for range 2 { // the second time, a valid token is known
				caller, err := v.Verify(t.Context(), "Bearer "+c.token)
				require.ErrorIs(t, err, c.err)
				if c.err == nil {
					assert.Equal(t, subject, caller.Subject)
					assert.WithinRange(t, caller.Expiry, time.Now(), time.Now().Add(2*time.Hour))
				}
			}
			assert.Contains(t, log.String(), c.reason)
			assert.NotContains(t, log.String(), c.token)
		})
	}
}

// A call without a bearer token is told so. The scheme may be in any case.
func TestVerify_NeedsBearerToken(t *testing.T) {
	issuer := kittest.NewIssuer(t)
	v := newVerifier(t, issuer, io.Discard)
	token := issuer.Token(t, claims())
	for _, header := range []string{"", "Bearer", "Bearer ", "Basic eDp5", token} {
		_, err := v.Verify(t.Context(), header)
		require.ErrorIs(t, err, identity.ErrNoToken, header)
	}
	_, err := v.Verify(t.Context(), "bearer "+token)
	require.NoError(t, err)
}

// A token of a new key is accepted at once if the last fetch is long ago, and one of the
// old key is refused after it.
func TestVerify_FollowsKeyRotation(t *testing.T) {
	issuer := kittest.NewIssuer(t)
	v := newVerifier(t, issuer, io.Discard)
	old := issuer.Token(t, claims())
	issuer.Rotate(t)
	require.NoError(t, verify(t, v, issuer.Token(t, claims())))
	require.ErrorIs(t, verify(t, v, old), identity.ErrInvalidToken)

	v = newVerifier(t, issuer, io.Discard)
	v.ReloadAlways()
	require.NoError(t, verify(t, v, issuer.Token(t, claims())))
	issuer.Rotate(t)
	require.NoError(t, verify(t, v, issuer.Token(t, claims())))
}

// A token of a key that the issuer has withdrawn is refused after 66 minutes at most, with
// calls every second and after a pause of hours.
func TestVerify_RefusesWithdrawnKey(t *testing.T) {
	for name, between := range map[string]time.Duration{"calls": time.Second, "pause": 10 * time.Hour} {
		t.Run(name, func(t *testing.T) {
			issuer := kittest.NewIssuer(t)
			tel := kittest.Telemetry(t, io.Discard)
			synctest.Test(t, func(t *testing.T) { // the requests to the issuer take no time there
				v := identity.NewVerifier(identity.Issuer{URL: issuer.URL, CAFile: issuer.CAFile}, audience, []string{subject}, tel)
				token := issuer.Token(t, claims("exp", time.Now().Add(24*time.Hour).Unix()))
				require.NoError(t, verify(t, v, token))
				issuer.Rotate(t) // and withdraws the key before
				start := time.Now()
				for verify(t, v, token) == nil && time.Since(start) < 24*time.Hour {
					time.Sleep(between)
				}
				require.ErrorIs(t, verify(t, v, token), identity.ErrInvalidToken)
				assert.LessOrEqual(t, time.Since(start), max(66*time.Minute, between))
			})
		})
	}
}

// While the issuer is down, callers are accepted for a day, and HealthCheck says that the
// keys are old.
func TestVerify_OutageOfTheIssuer(t *testing.T) {
	issuer := kittest.NewIssuer(t)
	tel := kittest.Telemetry(t, io.Discard)
	synctest.Test(t, func(t *testing.T) {
		v := identity.NewVerifier(identity.Issuer{URL: issuer.URL, CAFile: issuer.CAFile}, audience, []string{subject}, tel)
		token := issuer.Token(t, claims("exp", time.Now().Add(48*time.Hour).Unix()))
		require.NoError(t, verify(t, v, token))
		output, err := v.HealthCheck(t.Context())
		require.NoError(t, err)
		assert.Equal(t, "keys of "+issuer.URL+" loaded at 2000-01-01T00:00:00Z", output)

		issuer.Down.Store(true)
		for start := time.Now(); time.Since(start) < 24*time.Hour-11*time.Minute; time.Sleep(10 * time.Minute) {
			require.NoError(t, verify(t, v, token), time.Since(start))
		}
		_, err = v.HealthCheck(t.Context())
		require.ErrorContains(t, err, "cannot be renewed; those in use were loaded at 2000-01-01T00:00:00Z")
		time.Sleep(20 * time.Minute)
		require.ErrorIs(t, verify(t, v, token), identity.ErrUnavailable)
		_, err = v.HealthCheck(t.Context())
		require.ErrorContains(t, err, "503")
	})
}

// Tokens that name unknown keys, however many they are, make at most one fetch of the keys
// a second. TestCache_ReloadIsLimited has the limit of a flood that goes on.
func TestVerify_FloodFetchesKeysRarely(t *testing.T) {
	issuer := kittest.NewIssuer(t)
	v := newVerifier(t, issuer, io.Discard)
	forged := make([]string, 200)
	for i := range forged {
		key := jose.JSONWebKey{Key: []byte(strings.Repeat("k", 32)), KeyID: fmt.Sprint("unknown-", i)}
		forged[i] = strings.Replace(issuer.SignWith(t, "HS256", key, claims()),
			base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"HS256"`))[:18],
			base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"RS256"`))[:18], 1)
	}
	var all sync.WaitGroup
	start := time.Now()
	for _, token := range forged {
		all.Go(func() { assert.ErrorIs(t, verify(t, v, token), identity.ErrInvalidToken) })
	}
	all.Wait()
	require.NoError(t, verify(t, v, issuer.Token(t, claims())))
	assert.LessOrEqual(t, issuer.Fetches.Load(), 1+int64(time.Since(start)/time.Second))
}

// Without the issuer no new caller is accepted or refused. Callers that were accepted, and
// tokens of known keys, still are. When the issuer is back, calls succeed again.
func TestVerify_IssuerUnreachable(t *testing.T) {
	issuer := kittest.NewIssuer(t)
	v := newVerifier(t, issuer, io.Discard)
	issuer.Down.Store(true)
	require.ErrorIs(t, verify(t, v, issuer.Token(t, claims())), identity.ErrUnavailable)
	issuer.Down.Store(false)
	kittest.Eventually(t, func() bool { return verify(t, v, issuer.Token(t, claims())) == nil }, "the caller is not accepted")

	issuer.Down.Store(true)
	require.NoError(t, verify(t, v, issuer.Token(t, claims("jti", "another token"))))
	require.ErrorIs(t, verify(t, v, issuer.Token(t, claims("sub", "x"))), identity.ErrDenied)
}

// A call whose context ends does not wait for the issuer.
func TestVerify_EndsWithItsContext(t *testing.T) {
	issuer := kittest.NewIssuer(t)
	v := newVerifier(t, issuer, io.Discard)
	cause := errors.New("the caller left")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(cause)
	_, err := v.Verify(ctx, "Bearer "+issuer.Token(t, claims()))
	require.ErrorIs(t, err, cause)
	kittest.Eventually(t, func() bool { return issuer.Fetches.Load() == 1 }, "the load does not end")
}

// Discovery sends the token in TokenFile, and verifies the issuer's certificate.
func TestVerify_DiscoveryUsesFiles(t *testing.T) {
	issuer := kittest.NewIssuer(t)
	issuer.Authorization = "Bearer of-service-b"
	file := filepath.Join(t.TempDir(), "token")
	require.NoError(t, os.WriteFile(file, []byte("of-service-b\n"), 0o600))
	for name, c := range map[string]struct {
		issuer identity.Issuer
		err    error
	}{
		"both files":    {identity.Issuer{URL: issuer.URL, CAFile: issuer.CAFile, TokenFile: file}, nil},
		"without token": {identity.Issuer{URL: issuer.URL, CAFile: issuer.CAFile}, identity.ErrUnavailable},
		"without CA":    {identity.Issuer{URL: issuer.URL, TokenFile: file}, identity.ErrUnavailable},
		"no such CA":    {identity.Issuer{URL: issuer.URL, CAFile: file + "-none", TokenFile: file}, identity.ErrUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			v := identity.NewVerifier(c.issuer, audience, []string{subject}, kittest.Telemetry(t, io.Discard))
			require.ErrorIs(t, verify(t, v, issuer.Token(t, claims())), c.err)
		})
	}
}

// BenchmarkVerify shows why verified tokens are kept.
func BenchmarkVerify(b *testing.B) {
	issuer := kittest.NewIssuer(b)
	v := newVerifier(b, issuer, io.Discard)
	b.Run("known", func(b *testing.B) {
		token := issuer.Token(b, claims())
		for b.Loop() {
			if err := verify(b, v, token); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("new", func(b *testing.B) {
		token := issuer.Token(b, claims())
		for b.Loop() {
			v.Forget()
			if err := verify(b, v, token); err != nil {
				b.Fatal(err)
			}
		}
	})
}
