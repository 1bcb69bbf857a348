package identity

import (
	"context"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/prometheus/client_golang/prometheus"

	"example.com/tandem/kit/call"
	"example.com/tandem/kit/telemetry"
)

const (
	// maxToken is the size limit of a token, in bytes. The API server's have about 1 KiB,
	// Entra's about 2 KiB. (The servers of kit accept less in all headers together.)
	maxToken = 16 << 10
	// clockSkew is how long after its expiry a token is accepted: clocks differ.
	// ("Not before" has a tolerance of 5 minutes less clockSkew, by package oidc.)
	clockSkew = 30 * time.Second
	// maxVerified is how many verified tokens are kept. A caller has one an hour.
	maxVerified = 1024
	// minRemembered is how long a token is kept that was verified with keys older than
	// keysRenewed. Without it, each call would be verified during an outage of the issuer.
	minRemembered = time.Minute
)

// Issuer says which issuer signs the tokens, and how to get its keys.
type Issuer struct {
	// URL is the issuer as the tokens name it, an https URL. Discovery appends
	// /.well-known/openid-configuration to it.
	URL string
	// CAFile is a file of the CAs that verify the issuer's certificate, as PEM; empty means
	// those of the system.
	CAFile string
	// TokenFile is a file of a token that is sent to the issuer for its keys: the API
	// server of a cluster wants one. Empty means none.
	TokenFile string
}

// Verifier checks the tokens of callers. It is safe for concurrent use.
type Verifier struct {
	issuer   string
	config   *oidc.Config
	keys     *cache[keys]
	subjects []string
	log      *slog.Logger
	checks   *prometheus.CounterVec

	reloadInterval time.Duration // the constant; shorter in tests

	// verified are tokens that were verified, by their hash. To verify a token takes more
	// CPU time than the rest of a small call (BenchmarkVerify). Only valid tokens are kept,
	// so unknown callers cannot fill it.
	mu       sync.Mutex
	verified map[[sha256.Size]byte]verified
}

// verified is a token that was verified, and until when that counts.
type verified struct {
	caller Caller
	until  time.Time
}

// NewVerifier returns a verifier of an issuer's tokens for an audience, such as
// service-b. Only the subjects may call. The issuer's keys are loaded for the first
// token or HealthCheck.
func NewVerifier(issuer Issuer, audience string, subjects []string, tel *telemetry.Telemetry) *Verifier {
	config := &oidc.Config{ClientID: audience, Now: func() time.Time { return time.Now().Add(-clockSkew) }}
	for _, a := range algorithms {
		config.SupportedSigningAlgs = append(config.SupportedSigningAlgs, string(a))
	}
	return &Verifier{
		issuer:   issuer.URL,
		config:   config,
		keys:     newCache("keys", tel, issuer.loadKeys),
		subjects: subjects,
		log:      tel.Log,
		checks: call.Register(tel.Metrics, prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "identity_checks_total",
			Help: "Checks of callers' tokens, by result.",
		}, []string{"result"})),
		reloadInterval: reloadInterval,
		verified:       map[[sha256.Size]byte]verified{},
	}
}

// Verify returns who calls, by the value of the call's header authorization. Its errors
// are ErrNoToken, ErrInvalidToken, ErrDenied, ErrUnavailable, and the cause of a ctx that
// ended.
func (v *Verifier) Verify(ctx context.Context, authorization string) (Caller, error) {
	caller, result, err := v.verify(ctx, authorization)
	v.checks.WithLabelValues(result).Inc()
	return caller, err
}

// verify returns the result for the metric, too.
func (v *Verifier) verify(ctx context.Context, authorization string) (caller Caller, result string, err error) {
	scheme, token, _ := strings.Cut(authorization, " ")
	if !strings.EqualFold(scheme, "Bearer") || token == "" {
		return Caller{}, "no token", ErrNoToken
	}
	if len(token) > maxToken {
		v.logRefusal(ctx, "the token is too large")
		return Caller{}, "invalid", ErrInvalidToken
	}
	hash := sha256.Sum256([]byte(token))
	if caller, ok := v.known(hash); ok {
		return caller, "ok", nil
	}
	set := &keySet{cache: v.keys, reloadInterval: v.reloadInterval}
	id, err := oidc.NewVerifier(v.issuer, set, v.config).Verify(ctx, token)
	switch {
	case err != nil && ctx.Err() != nil:
		return Caller{}, "canceled", context.Cause(ctx)
	case set.loadErr != nil:
		v.logRefusal(ctx, "load the issuer's keys: "+set.loadErr.Error())
		return Caller{}, "unavailable", ErrUnavailable
	case err != nil:
		v.logRefusal(ctx, err.Error())
		return Caller{}, "invalid", ErrInvalidToken
	case !slices.Contains(v.subjects, id.Subject):
		v.logRefusal(ctx, "subject "+id.Subject)
		return Caller{}, "denied", ErrDenied
	}
	caller = Caller{Subject: id.Subject, Expiry: id.Expiry.Add(clockSkew)}
	v.remember(hash, caller, set.used)
	return caller, "ok", nil
}

// HealthCheck describes the issuer's keys. It is a check of package health: it fails without
// keys, and if the keys could not be renewed for a while. A service that requires it has the
// keys before its first call.
func (v *Verifier) HealthCheck(ctx context.Context) (output string, err error) {
	keys, err := v.keys.get(ctx)
	if err != nil {
		return "", fmt.Errorf("load the keys of %s: %w", v.issuer, err)
	}
	loaded := keys.loaded.UTC().Format(time.RFC3339)
	if time.Since(keys.loaded) >= keysStale {
		return "", fmt.Errorf("the keys of %s cannot be renewed; those in use were loaded at %s", v.issuer, loaded)
	}
	return fmt.Sprintf("keys of %s loaded at %s", v.issuer, loaded), nil
}

func (v *Verifier) logRefusal(ctx context.Context, reason string) {
	v.log.InfoContext(ctx, "caller refused", "reason", telemetry.Truncate(reason))
}

func (v *Verifier) known(hash [sha256.Size]byte) (Caller, bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	known, ok := v.verified[hash]
	return known.caller, ok && time.Now().Before(known.until)
}

// remember keeps a token until it expires, but only for as long as its keys are current: it
// is then verified with others.
func (v *Verifier) remember(hash [sha256.Size]byte, caller Caller, keys keys) {
	until := keys.loaded.Add(keysRenewed)
	if least := time.Now().Add(minRemembered); until.Before(least) {
		until = least
	}
	if caller.Expiry.Before(until) {
		until = caller.Expiry
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.verified) >= maxVerified {
		clear(v.verified) // rare, and the tokens in use are soon verified again
	}
	v.verified[hash] = verified{caller, until}
}
