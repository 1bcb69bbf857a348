package problem_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"example.com/tandem/kit/problem"
)

func TestWrite_FollowsRFC9457(t *testing.T) {
	for _, c := range []struct {
		name       string
		problem    problem.Problem
		body       string
		retryAfter string
	}{
		{
			name:    "the title is the text of the status",
			problem: problem.Problem{Status: 404},
			body:    `{"title":"Not Found","status":404}`,
		},
		{
			name:    "a given title is kept",
			problem: problem.Problem{Title: "Under maintenance", Status: 503},
			body:    `{"title":"Under maintenance","status":503}`,
		},
		{
			name: "all fields",
			problem: problem.Problem{
				Status: 503, Detail: "try \"later\"", Class: "unavailable", TraceID: "0af7",
				Call: map[string]int{"attempts": 3}, RetryAfter: 2,
			},
			body: `{"title":"Service Unavailable","status":503,"detail":"try \"later\"","class":"unavailable",` +
				`"traceId":"0af7","call":{"attempts":3}}`,
			retryAfter: "2",
		},
		{
			name:    "a call that cannot be marshalled is omitted",
			problem: problem.Problem{Status: 502, Call: make(chan int)},
			body:    `{"title":"Bad Gateway","status":502}`,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := httptest.NewRecorder()
			problem.Write(w, c.problem)
			assert.Equal(t, c.problem.Status, w.Code)
			assert.JSONEq(t, c.body, w.Body.String())
			assert.Equal(t, "application/problem+json", w.Header().Get("Content-Type"))
			assert.Equal(t, "nosniff", w.Header().Get("X-Content-Type-Options"))
			assert.Equal(t, c.retryAfter, w.Header().Get("Retry-After"))
		})
	}
}

// Markup is escaped, in case a client takes the response for HTML.
func TestError_EscapesMarkup(t *testing.T) {
	w := httptest.NewRecorder()
	problem.Error(w, http.StatusBadRequest, "no <script>")
	assert.Equal(t, http.StatusBadRequest, w.Code)
	assert.NotContains(t, w.Body.String(), "<", "the response contains markup")
	var p problem.Problem
	require.NoError(t, json.Unmarshal(w.Body.Bytes(), &p))
	assert.Equal(t, problem.Problem{Title: "Bad Request", Status: 400, Detail: "no <script>"}, p)
}
