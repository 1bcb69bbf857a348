package backend

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"example.com/tandem/kit/call"
)

const (
	jsonType    = "application/json"
	problemType = "application/problem+json"
	good        = `{"data":{"message":"hello","servedBy":{"pod":"b-1"}}}`
)

func TestDecode(t *testing.T) {
	for name, c := range map[string]struct {
		status      int
		contentType string
		body        string
		err         string // of what is said; empty for none
		class       call.Class
	}{
		"an answer":               {200, jsonType, good, "", call.OK},
		"with a charset":          {200, jsonType + "; charset=utf-8", good, "", call.OK},
		"of a newer service-b":    {200, jsonType, `{"data":{"servedBy":{"pod":"b-1","rack":7}},"more":[1]}`, "", call.OK},
		"that is HTML":            {200, "text/html", "<html>", `"text/html": want application/json`, call.Other},
		"of no type":              {200, "", good, `"": want application/json`, call.Other},
		"that is garbage":         {200, jsonType, "\x00\xff{", "makes no sense", call.Other},
		"that is cut off":         {200, jsonType, good[:20], "makes no sense", call.Other},
		"that is empty":           {200, jsonType, "", "makes no sense", call.Other},
		"that says nothing":       {200, jsonType, "{}", "holds no data", call.Other},
		"of nobody":               {200, jsonType, `{"data":{"message":"hello"}}`, "does not say who served it", call.Other},
		"another shape":           {200, jsonType, `{"data":"hello"}`, "makes no sense", call.Other},
		"another page":            {404, problemType, "{}", "status 404: want 200", call.Other},
		"a redirect":              {302, jsonType, good, "status 302: want 200", call.Other},
		"an internal error":       {500, problemType, "{}", "status 500", call.Other},
		"overload":                {503, problemType, "{}", "status 503", call.Unavailable},
		"a proxy's bad gateway":   {502, "text/html", "", "status 502", call.Unavailable},
		"a proxy's time-out":      {504, "text/html", "", "status 504", call.Timeout},
		"a refusal":               {400, problemType, `{"detail":"key is too long"}`, "key is too long", call.Other},
		"a refusal without words": {400, problemType, "{", "refused the request without a word", call.Other},
		"a proxy's refusal":       {400, "text/html", "", "status 400: want 200", call.Other},
	} {
		t.Run(name, func(t *testing.T) {
			data, err := decode(c.status, c.contentType, []byte(c.body))
			assert.Equal(t, c.class, call.ClassOf(err))
			if c.err == "" {
				require.NoError(t, err)
				assert.Equal(t, "b-1", data.GetServedBy().GetPod())
				return
			}
			require.ErrorContains(t, err, c.err)
			assert.Nil(t, data)
		})
	}
	var invalid *InvalidError
	_, err := decode(400, problemType, []byte(`{"detail":"no"}`))
	require.ErrorAs(t, err, &invalid, "the caller's mistake, not service-b's")
}

// Whatever comes back, it is an answer of someone or an error.
func FuzzDecode(f *testing.F) {
	f.Add(200, jsonType, []byte(good))
	f.Add(200, jsonType, []byte(`{"data":{"servedAt":"2026-13-99T00:00:00Z","servedBy":{"pod":"b"}}}`))
	f.Add(400, problemType, []byte(`{"detail":1}`))
	f.Add(503, "", []byte{})
	f.Add(200, "application/json; charset=\"", []byte(good))
	f.Fuzz(func(t *testing.T, status int, contentType string, body []byte) {
		data, err := decode(status, contentType, body)
		if err == nil {
			assert.NotEmpty(t, data.GetServedBy().GetPod())
			assert.Equal(t, 200, status)
		} else {
			assert.Nil(t, data)
			assert.NotEmpty(t, err.Error())
		}
	})
}
