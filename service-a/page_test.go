package main

import (
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path"
	"regexp"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"example.com/tandem/kit/kittest"
)

// Every file of the page is served with its type, a strict policy, and a tag by which a
// browser asks whether it has changed. It is served even if service-b has no address.
func TestPage_ServesItsFiles(t *testing.T) {
	t.Parallel()
	a := startA(t, hostOf(t))
	files, err := os.ReadDir("internal/page/static")
	require.NoError(t, err)
	paths := []string{"/"}
	for _, f := range files {
		paths = append(paths, "/static/"+f.Name())
	}
	types := map[string]string{
		"": "text/html; charset=utf-8", ".html": "text/html; charset=utf-8", ".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8",
		".svg": "image/svg+xml",
	}
	for _, p := range paths {
		code, header, body := kittest.Get(t, a.URL+p)
		require.Equal(t, http.StatusOK, code, p)
		assert.NotEmpty(t, body, p)
		assert.Equal(t, types[path.Ext(p)], header.Get("Content-Type"), p)
		assert.Equal(t, "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "+
			"base-uri 'none'; form-action 'none'; frame-ancestors 'none'", header.Get("Content-Security-Policy"), p)
		assert.Equal(t, []string{"nosniff"}, header.Values("X-Content-Type-Options"), p)
		assert.Equal(t, "no-referrer", header.Get("Referrer-Policy"), p)
		assert.Equal(t, "no-cache", header.Get("Cache-Control"), p)

		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, a.URL+p, nil)
		require.NoError(t, err)
		req.Header.Set("If-None-Match", header.Get("ETag"))
		code, _, body = kittest.Do(t, req)
		assert.Equal(t, http.StatusNotModified, code, p)
		assert.Empty(t, body, p)
	}
	for _, p := range []string{"/static/", "/static/none.js", "/static/..%2fpage.go", "/static//index.html", "/static/index.html/", "/index.html"} {
		code, header, _ := kittest.Get(t, a.URL+p)
		assert.Equal(t, http.StatusNotFound, code, p)
		assert.Equal(t, "application/problem+json", header.Get("Content-Type"), p)
	}
}

var links = regexp.MustCompile(`(?:href|src)="([^"]*)"`)

// Behind a prefix, as a gateway may add one, the page finds all that it links to.
func TestPage_WorksBehindPrefix(t *testing.T) {
	t.Parallel()
	a, _, _ := startPair(t, 1)
	target, err := url.Parse(a.URL)
	require.NoError(t, err)
	proxy := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(target) }, ErrorLog: nil}
	gateway := httptest.NewServer(http.StripPrefix("/some/prefix", proxy))
	t.Cleanup(gateway.Close)
	page, err := url.Parse(gateway.URL + "/some/prefix/")
	require.NoError(t, err)
	_, _, body := kittest.Get(t, page.String())
	found := links.FindAllStringSubmatch(body, -1)
	require.NotEmpty(t, found)
	for _, link := range found {
		ref, err := url.Parse(link[1])
		require.NoError(t, err)
		require.Empty(t, ref.Host, link[1])
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, page.ResolveReference(ref).String(), nil)
		require.NoError(t, err)
		resp, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(req)
		require.NoError(t, err)
		_, _ = io.CopyN(io.Discard, resp.Body, 1) // a stream does not end
		assert.NoError(t, resp.Body.Close())
		assert.Equal(t, http.StatusOK, resp.StatusCode, link[1])
	}
}
