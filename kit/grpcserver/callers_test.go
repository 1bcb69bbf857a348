package grpcserver_test

import (
	"context"
	"io"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"example.com/tandem/kit/grpcserver"
	"example.com/tandem/kit/identity"
	"example.com/tandem/kit/internal/echo"
	"example.com/tandem/kit/kittest"
	"example.com/tandem/kit/limiter"
)

// acceptOnly returns options of a server that accepts the subject "friend" only.
func acceptOnly(t *testing.T, issuer *kittest.Issuer) grpcserver.Options {
	tel := kittest.Telemetry(t, io.Discard)
	return grpcserver.Options{Callers: identity.NewVerifier(identity.Issuer{URL: issuer.URL, CAFile: issuer.CAFile}, "b", []string{"friend"}, tel)}
}

func withToken(ctx context.Context, token string) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
}

// watch opens a stream and returns the error with which it ends.
func watch(ctx context.Context, conn *grpc.ClientConn) error {
	stream, err := echo.Open(ctx, conn)
	if err != nil {
		return err
	}
	for err == nil {
		_, err = stream.Recv()
	}
	return err
}

// An unknown caller is refused by every service except health, and does not count towards
// the concurrency limit.
func TestServer_AcceptsKnownCallersOnly(t *testing.T) {
	t.Parallel()
	issuer := kittest.NewIssuer(t)
	o := acceptOnly(t, issuer)
	o.Limiter = limiter.New(1, kittest.Telemetry(t, io.Discard).Metrics)
	require.NoError(t, o.Limiter.Acquire(t.Context())) // the limit is reached
	s := start(t, o, echo.Echo{})
	friend := issuer.Token(t, map[string]any{"aud": "b", "sub": "friend"})
	for name, c := range map[string]struct {
		ctx  context.Context
		code codes.Code
	}{
		"without token":        {t.Context(), codes.Unauthenticated},
		"for another audience": {withToken(t.Context(), issuer.Token(t, map[string]any{"aud": "c", "sub": "friend"})), codes.Unauthenticated},
		"another subject":      {withToken(t.Context(), issuer.Token(t, map[string]any{"aud": "b", "sub": "intruder"})), codes.PermissionDenied},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := s.say(c.ctx)
			assert.Equal(t, c.code, status.Code(err), "%v", err)
			assert.NotContains(t, err.Error(), "intruder")
			err = watch(c.ctx, s.conn)
			assert.Equal(t, c.code, status.Code(err), "%v", err)
		})
	}
	_, err := s.say(withToken(t.Context(), friend))
	require.ErrorContains(t, err, limiter.ErrFull.Error(), "the friend's call reaches the limit")
	require.ErrorContains(t, watch(withToken(t.Context(), friend), s.conn), limiter.ErrFull.Error())
	_, err = grpc_health_v1.NewHealthClient(s.conn).Check(t.Context(), &grpc_health_v1.HealthCheckRequest{})
	require.NoError(t, err)
}

// Without the issuer nobody is accepted. The code is one that is retried.
func TestServer_IssuerUnreachable(t *testing.T) {
	t.Parallel()
	issuer := kittest.NewIssuer(t)
	issuer.Down.Store(true)
	s := start(t, acceptOnly(t, issuer), echo.Echo{})
	ctx := withToken(t.Context(), issuer.Token(t, map[string]any{"aud": "b", "sub": "friend"}))
	_, err := s.say(ctx)
	assert.Equal(t, codes.Unavailable, status.Code(err), "%v", err)
	issuer.Down.Store(false)
	kittest.Eventually(t, func() bool { _, err := s.say(ctx); return err == nil }, "the friend is not accepted")
}

// A stream ends when the caller's token expires, with a code after which the caller opens
// it again.
func TestServer_StreamEndsWithToken(t *testing.T) {
	t.Parallel()
	issuer := kittest.NewIssuer(t)
	s := start(t, acceptOnly(t, issuer), echo.Echo{Watch: func(ss grpc.ServerStream) error {
		<-ss.Context().Done()
		return ss.Context().Err()
	}})
	// Accepted for a few seconds: 30 s of tolerance for clocks.
	token := issuer.Token(t, map[string]any{"aud": "b", "sub": "friend", "exp": time.Now().Add(-27 * time.Second).Unix()})
	err := watch(withToken(t.Context(), token), s.conn)
	assert.Equal(t, codes.Unavailable, status.Code(err))
	require.ErrorContains(t, err, identity.ErrExpired.Error())
}
