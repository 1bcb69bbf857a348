package grpcclient_test

import (
	"context"
	"io"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"example.com/tandem/kit/call"
	"example.com/tandem/kit/grpcclient"
	"example.com/tandem/kit/identity"
	"example.com/tandem/kit/internal/echo"
	"example.com/tandem/kit/kittest"
)

// Calls and streams send the token, over plaintext too.
func TestToken_SentWithEachCall(t *testing.T) {
	t.Parallel()
	file, token := kittest.NewIssuer(t).TokenFile(t, nil)
	sent := func(ctx context.Context) string { return metadata.ValueFromIncomingContext(ctx, "authorization")[0] }
	target := local(t, echo.Echo{
		Say:   func(ctx context.Context, _ string) (string, error) { return sent(ctx), nil },
		Watch: func(ss grpc.ServerStream) error { return echo.Send(ss, sent(ss.Context())) },
	})
	conn := newClient(t, target, grpcclient.Options{Token: identity.FromFile(file, kittest.Telemetry(t, io.Discard))})
	got := say(t.Context(), conn)
	require.NoError(t, got.err)
	assert.Equal(t, "Bearer "+token, got.text)
	stream, err := echo.Open(t.Context(), conn)
	require.NoError(t, err)
	text, err := stream.Recv()
	require.NoError(t, err)
	assert.Equal(t, "Bearer "+token, text)
}

// Without a token nothing is sent, and the call fails with a class of its own.
func TestToken_MissingFailsTheCall(t *testing.T) {
	t.Parallel()
	tel := kittest.Telemetry(t, io.Discard)
	conn := newClient(t, local(t, echo.Echo{}), grpcclient.Options{Telemetry: tel, Token: identity.FromFile(filepath.Join(t.TempDir(), "none"), tel)})
	got := say(t.Context(), conn)
	assert.Equal(t, call.Token, got.class, "%v", got.err)
	assert.Equal(t, codes.Unavailable, status.Code(got.err))
	assert.Zero(t, got.Attempts)
	_, err := echo.Open(t.Context(), conn)
	assert.Equal(t, call.Token, call.ClassOf(err))
	assert.Contains(t, kittest.Scrape(t, tel), `client_calls_total{outcome="token",peer="127.0.0.1",transport="grpc"} 2`)
}
