package httpclient

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"example.com/tandem/kit/kittest"
)

// newAttempt is what a client makes of each attempt, to be asked alone.
func newAttempt(t *testing.T) *attempt {
	t.Helper()
	client := New(Options{Timeout: time.Minute, Telemetry: kittest.Telemetry(t, io.Discard)})
	t.Cleanup(client.CloseIdleConnections)
	return client.Transport.(*caller).next.next
}

func ask(t *testing.T, a *attempt, url, question string, once bool) use {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, strings.NewReader(question))
	require.NoError(t, err)
	if once {
		req.GetBody = nil
	}
	resp, u, err := a.try(t.Context(), req)
	require.NoError(t, err)
	answer, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	assert.Len(t, answer, len(question), "it has arrived whole")
	return u
}

func isOpen(c *counted) bool { return c.SetDeadline(time.Time{}) == nil }

func echo(w http.ResponseWriter, r *http.Request) {
	question, _ := io.ReadAll(r.Body) // all, as net/http reads no more once an answer has begun
	_, _ = w.Write(question)
}

// A request may have been given a connection just before that was left.
func TestRequestThatIsGivenAConnectionThatWasLeftTakesAnother(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(echo))
	defer s.Close()
	large := strings.Repeat("question", 10_000)
	for name, tt := range map[string]struct {
		question string
		once     bool
	}{
		"no body":       {"", false},
		"body":          {"question", false},
		"large body":    {large, false},
		"body had once": {large, true},
	} {
		t.Run(name, func(t *testing.T) {
			a := newAttempt(t)
			for range 50 { // who notices first that it is closed is up to chance
				first := ask(t, a, s.URL, "", false)
				first.end(false)
				first.conn.left = true
				second := ask(t, a, s.URL, tt.question, tt.once)
				assert.NotSame(t, first.conn, second.conn)
				second.end(false)
			}
		})
	}
}

// net/http hands a connection on before the last request has taken its answer,
// and loses that if the connection is closed meanwhile.
func TestConnectionIsNotClosedUnderARequest(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(echo))
	defer s.Close()
	a := newAttempt(t)
	first := ask(t, a, s.URL, "", false)
	second := ask(t, a, s.URL, "", false)
	require.Same(t, first.conn, second.conn)
	first.end(true)
	third := ask(t, a, s.URL, "", false)
	assert.Same(t, first.conn, third.conn, "it may have been taken before the second has its answer")
	second.end(false)
	assert.True(t, isOpen(first.conn))
	third.end(false)
	assert.False(t, isOpen(first.conn), "the last one closes it")
}

func TestConnectionIsLeftOverTLSToo(t *testing.T) {
	s := httptest.NewTLSServer(http.HandlerFunc(echo))
	defer s.Close()
	a := newAttempt(t)
	a.next.(*http.Transport).TLSClientConfig = s.Client().Transport.(*http.Transport).TLSClientConfig
	first := ask(t, a, s.URL, "", false)
	first.end(false)
	second := ask(t, a, s.URL, "", false)
	assert.Same(t, first.conn, second.conn)
	second.end(true)
	assert.False(t, isOpen(second.conn))
	ask(t, a, s.URL, "", false).end(false)
}
