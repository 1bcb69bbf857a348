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

// Page handles GET /: it lists links to the API. Azure's load balancer probes this
// path and wants status 200, even if service-b is down.
func Page(me instance.Instance) http.HandlerFunc {
	// Without html/template, which calls methods by name: the linker would keep every
	// method of the binary, which adds 2.5 MB.
	where := strings.Join(nonEmpty(me.Pod, me.Namespace, me.Node, me.Zone, "version "+me.Version), " · ")
	page := []byte(strings.NewReplacer("{{service}}", html.EscapeString(me.Service), "{{where}}", html.EscapeString(where)).Replace(pageHTML))
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		// The page runs no script and loads nothing.
		w.Header().Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'")
		w.Header().Set("Cache-Control", "no-store")
		_, _ = w.Write(page) // fails only if the client has disconnected
	}
}

func nonEmpty(words ...string) []string {
	return slices.DeleteFunc(words, func(w string) bool { return w == "" })
}
