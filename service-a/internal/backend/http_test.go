package backend

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"example.com/tandem/kit/call"
)

const (
	jsonType    = "application/json"
	problemType = "application/problem+json"
	decodeErr   = "decode service-b's response"
	good        = `{"data":{"message":"hello","servedBy":{"pod":"b-1"}}}`
)

func TestDecode(t *testing.T) {
	for name, c := range map[string]struct {
		status int
		mime   string // content type
		body   string
		err    string // what the error contains; empty if there is none
		class  call.Class
	}{
		"valid":                  {status: 200, mime: jsonType, body: good, class: call.OK},
		"charset":                {status: 200, mime: jsonType + "; charset=utf-8", body: good, class: call.OK},
		"newer service-b":        {status: 200, mime: jsonType, body: `{"data":{"servedBy":{"pod":"b-1","rack":7}},"more":[1]}`, class: call.OK},
		"HTML":                   {status: 200, mime: "text/html", body: "<html>", err: `"text/html": want application/json`, class: call.Other},
		"no content type":        {status: 200, mime: "", body: good, err: `"": want application/json`, class: call.Other},
		"garbage":                {status: 200, mime: jsonType, body: "\x00\xff{", err: decodeErr, class: call.Other},
		"truncated":              {status: 200, mime: jsonType, body: good[:20], err: decodeErr, class: call.Other},
		"empty body":             {status: 200, mime: jsonType, body: "", err: decodeErr, class: call.Other},
		"empty object":           {status: 200, mime: jsonType, body: "{}", err: "does not name the pod", class: call.Other},
		"no pod":                 {status: 200, mime: jsonType, body: `{"data":{"message":"hello"}}`, err: "does not name the pod", class: call.Other},
		"wrong type":             {status: 200, mime: jsonType, body: `{"data":"hello"}`, err: decodeErr, class: call.Other},
		"not found":              {status: 404, mime: problemType, body: "{}", err: "status 404: want 200", class: call.Other},
		"redirect":               {status: 302, mime: jsonType, body: good, err: "status 302: want 200", class: call.Other},
		"internal error":         {status: 500, mime: problemType, body: "{}", err: "status 500", class: call.Other},
		"overload":               {status: 503, mime: problemType, body: "{}", err: "status 503", class: call.Unavailable},
		"bad gateway of a proxy": {status: 502, mime: "text/html", body: "", err: "status 502", class: call.Unavailable},
		"timeout of a proxy":     {status: 504, mime: "text/html", body: "", err: "status 504", class: call.Timeout},
		"no credentials":         {status: 401, mime: problemType, body: "{}", err: "refused the call with status 401", class: call.Denied},
		"denied by a proxy":      {status: 403, mime: "text/plain", body: "RBAC: access denied\n\nmore", err: `status 403: "RBAC: access denied"`, class: call.Denied},
		"denied in a long text":  {status: 403, mime: "text/plain", body: strings.Repeat("x", 101), err: "refused the call with status 403", class: call.Denied},
		"invalid request":        {status: 400, mime: problemType, body: `{"detail":"key is too long"}`, err: "key is too long", class: call.Other},
		"invalid, no detail":     {status: 400, mime: problemType, body: "{", err: "without a detail", class: call.Other},
		"bad request of a proxy": {status: 400, mime: "text/html", body: "", err: "status 400: want 200", class: call.Other},
	} {
		t.Run(name, func(t *testing.T) {
			data, err := decode(c.status, c.mime, []byte(c.body))
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
	require.ErrorAs(t, err, &invalid)
}

// Every response decodes to data that names a pod, or to an error.
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
