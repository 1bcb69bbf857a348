package api

import (
	_ "embed"
	"html"
	"net/http"
	"slices"
	"strings"

	"example.com/tandem/kit/instance"
)

//go:embed page.html
var pageHTML string

// Page is GET /: what can be asked here. Azure's load balancer asks it too,
// and wants 200, whatever has become of service-b.
func Page(me instance.Instance) http.HandlerFunc {
	// No html/template for four words: it calls methods by name, for which the
	// linker must keep every method of the whole binary, 2.5 MB of them.
	where := strings.Join(filled(me.Pod, me.Namespace, me.Node, me.Zone, "version "+me.Version), " · ")
	page := []byte(strings.NewReplacer("{{service}}", html.EscapeString(me.Service), "{{where}}", html.EscapeString(where)).Replace(pageHTML))
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		// The page is plain: it runs no script and loads nothing.
		w.Header().Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'")
		w.Header().Set("Cache-Control", "no-store")
		_, _ = w.Write(page) // the caller may have left
	}
}

// filled is what is not empty.
func filled(words ...string) []string {
	return slices.DeleteFunc(words, func(w string) bool { return w == "" })
}
