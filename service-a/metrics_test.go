package main

import (
	"flag"
	"fmt"
	"maps"
	"net/http"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"

	"example.com/tandem/kit/call"
	"example.com/tandem/kit/kittest"
)

// update makes TestMetrics_AreDocumented write the document: make generate.
var update = flag.Bool("update", false, "write docs/metrics.md instead of comparing it")

// metricLabel says which values a label may have.
type metricLabel struct {
	values  []string // all of them; nil for the values of this test's requests
	pattern string   // in place of values: what they match
	meaning string   // of the pattern
}

// metricLabels are the labels of all metrics, by name or, where the values differ, by
// metric and name. A label that is missing here fails the test: its values might have no
// bound.
var metricLabels = map[string]metricLabel{
	"code":                         {pattern: `^(0|[1-5]\d\d)$`, meaning: "the HTTP status; in a client's metric 0 if there was no response"},
	"grpc_code":                    {values: grpcCodes()},
	"grpc_method":                  {values: []string{"GetData", "WatchData", "Check", "List", "Watch", "ServerReflectionInfo"}},
	"grpc_service":                 {values: []string{"data.v1.DataService", "grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection"}},
	"grpc_type":                    {values: []string{"unary", "client_stream", "server_stream", "bidi_stream"}},
	"method":                       {values: []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "_OTHER"}},
	"outcome":                      {values: outcomes()},
	"peer":                         {pattern: `^service-b\.[0-9a-f]+\.test$`, meaning: "the host of the target, as configured"},
	"identity_checks_total result": {values: []string{"ok", "no token", "invalid", "denied", "unavailable", "canceled"}},
	"identity_loads_total result":  {values: []string{"ok", "failed"}},
	"route":                        {values: []string{"/", "/api/data", "/api/faults/{pod}", "/api/live", "/api/spread", "/api/stream", "/faults", "/health", "/livez", "/readyz", "/static/*", "unmatched"}},
	"server":                       {values: []string{"http", "grpc"}},
	"service":                      {values: []string{"service-a", "service-b"}},
	"transport":                    {values: transports},
	"version":                      {pattern: `^\S+$`, meaning: "the version of the build"},
	"what":                         {values: []string{"keys", "token"}},
}

func grpcCodes() (names []string) {
	for code := codes.OK; code <= codes.Unauthenticated; code++ {
		names = append(names, code.String())
	}
	return names
}

func outcomes() (names []string) {
	for _, class := range append([]call.Class{call.OK}, call.Failures[:]...) {
		names = append(names, string(class))
	}
	return names
}

// metricFamily is a metric as the services export it.
type metricFamily struct {
	*dto.MetricFamily
	services []string
	labels   map[string]map[string]bool // the values by label
}

// docs/metrics.md lists the metrics that both services export after calls over both
// transports, successful and failed. Each label has only the values that the document lists.
func TestMetrics_AreDocumented(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("other systems have fewer metrics of the process")
	}
	t.Parallel()
	issuer := kittest.NewIssuer(t)
	name, b := hostOf(t), kittest.Loopbacks(t, 1)[0]
	startB(t, "b-1", b, "CALLER_ISSUER="+issuer.URL, "CALLER_ISSUER_CA_FILE="+issuer.CAFile, "CALLER_AUDIENCE=service-b", "CALLER_SUBJECTS=friend")
	dns.Set(name, b)
	admin := "127.0.0.1:" + kittest.FreePort()
	a := startA(t, name, "ADMIN_ADDR="+admin, "SERVICE_B_TOKEN_FILE="+tokenFile(t, issuer, "service-b", "friend"))
	for _, via := range transports {
		status, _, body := getData(t, a, "via="+via)
		require.Equal(t, http.StatusOK, status, body)
		getSpread(t, a, via, 2)
	}
	assert.Contains(t, firstEvent(t, a), `"sequence":`)
	for _, path := range []string{"/", "/health", "/livez", "/readyz", "/static/style.css", "/secret"} {
		kittest.Get(t, a.URL+path)
	}
	req, err := http.NewRequestWithContext(t.Context(), "BREW", a.URL+"/", nil)
	require.NoError(t, err)
	kittest.Do(t, req)
	for _, path := range []string{"/health", "/livez", "/secret"} {
		kittest.Get(t, "http://"+b+":"+httpPort+path)
	}
	refused := "127.0.0.1:" + kittest.FreePort()
	tokenless := startA(t, name, "ADMIN_ADDR="+refused)
	for _, via := range transports {
		status, _, body := getData(t, tokenless, "via="+via)
		assert.Equal(t, http.StatusBadGateway, status, body)
	}

	families := map[string]*metricFamily{}
	addFamilies(t, families, "service-a", admin)
	addFamilies(t, families, "service-a", refused)
	addFamilies(t, families, "service-b", b+":"+adminPort)
	checkLabels(t, families)

	const document, begin, end = "../docs/metrics.md", "<!-- begin of the generated part: make generate -->\n", "<!-- end of the generated part -->\n"
	text, err := os.ReadFile(document)
	require.NoError(t, err)
	before, rest, _ := strings.Cut(string(text), begin)
	_, after, found := strings.Cut(rest, end)
	require.True(t, found, "the marks are missing")
	want := before + begin + describe(families) + end + after
	if *update {
		require.NoError(t, os.WriteFile(document, []byte(want), 0o600))
		return
	}
	assert.Equal(t, want, string(text), "run make generate, and commit docs/metrics.md")
}

// addFamilies adds the metrics of a service, which the admin port at addr serves.
func addFamilies(t *testing.T, families map[string]*metricFamily, service, addr string) {
	t.Helper()
	_, _, body := kittest.Get(t, "http://"+addr+"/metrics")
	parser := expfmt.NewTextParser(model.UTF8Validation)
	scraped, err := parser.TextToMetricFamilies(strings.NewReader(body))
	require.NoError(t, err)
	for name, f := range scraped {
		if families[name] == nil {
			families[name] = &metricFamily{MetricFamily: f, labels: map[string]map[string]bool{}}
		}
		family := families[name]
		if !slices.Contains(family.services, service) {
			family.services = append(family.services, service)
		}
		assert.Equal(t, f.GetHelp(), family.GetHelp(), "%s has one meaning", name)
		for _, m := range f.GetMetric() {
			for _, pair := range m.GetLabel() {
				if family.labels[pair.GetName()] == nil {
					family.labels[pair.GetName()] = map[string]bool{}
				}
				family.labels[pair.GetName()][pair.GetValue()] = true
			}
		}
	}
}

// ofRuntime reports whether client_golang defines a metric, for every Go program.
func ofRuntime(metric string) bool {
	return strings.HasPrefix(metric, "go_") || strings.HasPrefix(metric, "process_")
}

// labelKey returns the key of metricLabels for a label of a metric.
func labelKey(metric, label string) string {
	if key := metric + " " + label; metricLabels[key].values != nil {
		return key
	}
	return label
}

func checkLabels(t *testing.T, families map[string]*metricFamily) {
	t.Helper()
	for name, family := range families {
		for label, values := range family.labels {
			if ofRuntime(name) {
				continue
			}
			allowed, known := metricLabels[labelKey(name, label)]
			assert.True(t, known, "%s has a label %s: add its values to metricLabels", name, label)
			for value := range values {
				if allowed.values != nil {
					assert.Contains(t, allowed.values, value, "label %s of %s", label, name)
				}
				assert.Regexp(t, allowed.pattern, value, "label %s of %s", label, name)
				assert.NotContains(t, value, "secret", "label %s of %s", label, name)
			}
		}
	}
}

// describe returns the tables of the document.
func describe(families map[string]*metricFamily) string {
	var own, ofGo strings.Builder
	seen := map[string]map[string]bool{} // values by key of metricLabels
	for _, name := range slices.Sorted(maps.Keys(families)) {
		family := families[name]
		kind := strings.ToLower(family.GetType().String())
		if ofRuntime(name) {
			fmt.Fprintf(&ofGo, "| `%s` | %s | %s |\n", name, kind, family.GetHelp())
			continue
		}
		unit := "–"
		for _, suffix := range []string{"seconds", "bytes"} {
			if strings.HasSuffix(name, "_"+suffix) {
				unit = suffix
			}
		}
		var names []string
		for _, label := range slices.Sorted(maps.Keys(family.labels)) {
			names = append(names, "`"+label+"`")
			key := labelKey(name, label)
			if seen[key] == nil {
				seen[key] = map[string]bool{}
			}
			maps.Copy(seen[key], family.labels[label])
		}
		service := "both"
		if len(family.services) == 1 {
			service = family.services[0]
		}
		fmt.Fprintf(&own, "| `%s` | %s | %s | %s | %s | %s |\n", name, kind, unit, strings.Join(names, ", "), service, family.GetHelp())
	}

	var labels strings.Builder
	for _, key := range slices.Sorted(maps.Keys(seen)) {
		metric, label, specific := strings.Cut(key, " ")
		title := "`" + metric + "`"
		if specific {
			title = "`" + label + "` of `" + metric + "`"
		}
		of := metricLabels[key]
		text := of.meaning
		if text == "" {
			values := of.values
			if values == nil {
				values = slices.Sorted(maps.Keys(seen[key]))
			}
			text = "`" + strings.Join(values, "`, `") + "`"
		}
		fmt.Fprintf(&labels, "| %s | %s |\n", title, text)
	}
	return "\n## Metrics of the services\n\n| metric | type | unit | labels | service | help |\n|---|---|---|---|---|---|\n" + own.String() +
		"\n## Labels\n\n| label | values |\n|---|---|\n" + labels.String() +
		"\n## Metrics of the Go runtime and the process\n\nBoth services export them on Linux.\n\n| metric | type | help |\n|---|---|---|\n" + ofGo.String() + "\n"
}
