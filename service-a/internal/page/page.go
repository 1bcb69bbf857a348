// Package page serves the page for people: the files in static/. The page is made of plain
// HTML, CSS and JavaScript modules, and gets all data from /api/live and the API.
package page

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"fmt"
	"net/http"
	"path"
	"time"

	"example.com/tandem/kit/problem"
)

//go:embed static
var files embed.FS

const (
	index = "static/index.html"
	// policy lets the page load nothing but its own files, and run no inline script.
	policy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; " +
		"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

// types are the media types of the files by extension. Package mime would depend on files of
// the system.
var types = map[string]string{
	".html": "text/html; charset=utf-8",
	".css":  "text/css; charset=utf-8",
	".js":   "text/javascript; charset=utf-8",
	".svg":  "image/svg+xml",
}

// Index handles GET /. Azure's load balancer probes this path and wants status 200, even if
// service-b is down.
func Index() http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) { serve(w, r, index) }
}

// Static handles GET /static/*.
func Static() http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) { serve(w, r, r.URL.Path[1:]) }
}

// serve responds with a file. Browsers ask each time whether it has changed: its name stays
// the same in the next version.
func serve(w http.ResponseWriter, r *http.Request, name string) {
	body, err := files.ReadFile(name)
	contentType, ok := types[path.Ext(name)]
	if err != nil || !ok {
		problem.Error(w, http.StatusNotFound, "the page has no such file")
		return
	}
	header := w.Header()
	header.Set("Content-Type", contentType)
	header.Set("Content-Security-Policy", policy)
	header.Set("Referrer-Policy", "no-referrer")
	header.Set("X-Content-Type-Options", "nosniff")
	header.Set("Cache-Control", "no-cache")
	header.Set("ETag", fmt.Sprintf("\"%x\"", sha256.Sum256(body)))
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(body))
}
