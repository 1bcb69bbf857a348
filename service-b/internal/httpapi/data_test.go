package httpapi_test

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protojson"

	"example.com/tandem/kit/instance"
	datav1 "example.com/tandem/proto/data/v1"
	"example.com/tandem/service-b/internal/domain"
	"example.com/tandem/service-b/internal/httpapi"
)

func get(t testing.TB, query string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/api/data", nil)
	r.URL.RawQuery = query
	httpapi.GetData(domain.New(instance.Instance{Pod: "b-1"}, "hello"))(w, r)
	return w
}

// The response is the JSON mapping of GetDataResponse.
func TestGetData_RespondsWithJSONMapping(t *testing.T) {
	for query, message := range map[string]string{
		"":               "hello",
		"key=ada":        "hello, ada",
		"key=%22%3Cb%3E": `hello, "<b>`,
		"other=1":        "hello",
	} {
		w := get(t, query)
		require.Equal(t, http.StatusOK, w.Code, w.Body)
		assert.Equal(t, "application/json", w.Header().Get("Content-Type"))
		var response datav1.GetDataResponse
		require.NoError(t, protojson.Unmarshal(w.Body.Bytes(), &response))
		assert.Equal(t, message, response.GetData().GetMessage())
		assert.Equal(t, "b-1", response.GetData().GetServedBy().GetPod())
	}
}

// Every query gets a valid GetDataResponse or a problem with status 400.
func FuzzGetData(f *testing.F) {
	for _, seed := range []string{"", "key=", "key=ada", "key=%ff", "key=%00", "key=a&key=", "%zz", "key=%E2%80%A8", ";"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, query string) {
		w := get(t, query)
		switch w.Code {
		case http.StatusOK:
			var response datav1.GetDataResponse
			require.NoError(t, protojson.Unmarshal(w.Body.Bytes(), &response))
			values, _ := url.ParseQuery(query)
			assert.Equal(t, values.Get("key"), response.GetData().GetKey())
		case http.StatusBadRequest:
			assert.Equal(t, "application/problem+json", w.Header().Get("Content-Type"))
		default:
			assert.Failf(t, "unexpected status", "%d: %s", w.Code, w.Body)
		}
	})
}
