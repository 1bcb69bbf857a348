package main

import (
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// The files for the Prometheus operator and for Azure follow from rules.yaml.
func TestGenerated_FollowFromRules(t *testing.T) {
	t.Chdir("..")
	require.NoError(t, run(true))
}

// catalog is what may be selected: the labels of each metric, and the values of a label
// that has a list of them.
type catalog struct {
	labels map[string][]string
	values map[string][]string // by label, or by metric and label with a space between
}

// scraped are the labels that every scrape adds.
var scraped = []string{"namespace", "pod", "container"}

// readCatalog reads docs/metrics.md, which make lint compares with what the services
// export, and adds the metrics of others that rules and dashboard use.
func readCatalog(t *testing.T) catalog {
	t.Helper()
	text, err := os.ReadFile("../../../docs/metrics.md")
	require.NoError(t, err)
	c := catalog{values: map[string][]string{}, labels: map[string][]string{
		// Prometheus
		"ALERTS": {"alertname", "alertstate"},
		// cAdvisor, in kubelet
		"container_cpu_cfs_periods_total":           nil,
		"container_cpu_cfs_throttled_periods_total": nil,
		"container_memory_working_set_bytes":        nil,
		// kube-state-metrics
		"kube_pod_container_resource_limits":       {"resource"},
		"kube_pod_container_status_restarts_total": nil,
	}}
	code := regexp.MustCompile("`([^`]+)`")
	list := func(cell string) (words []string) {
		for _, m := range code.FindAllStringSubmatch(cell, -1) {
			words = append(words, m[1])
		}
		return words
	}
	for line := range strings.Lines(string(text)) {
		cells := strings.Split(strings.Trim(line, "|\n"), " | ")
		switch names := list(cells[0]); {
		case !strings.HasPrefix(line, "| `"):
		case len(cells) == 6: // a metric of the services
			c.labels[names[0]] = list(cells[3])
			if strings.TrimSpace(cells[1]) == "histogram" {
				c.labels[names[0]+"_bucket"] = append([]string{"le"}, c.labels[names[0]]...)
				c.labels[names[0]+"_sum"], c.labels[names[0]+"_count"] = c.labels[names[0]], c.labels[names[0]]
				delete(c.labels, names[0])
			}
		case len(cells) == 3: // of the runtime
			c.labels[names[0]] = nil
		case len(names) == 2: // a label of one metric
			c.values[names[1]+" "+names[0]] = list(cells[1])
		default:
			c.values[names[0]] = list(cells[1])
		}
	}
	require.Contains(t, c.labels, "client_calls_total")
	require.Contains(t, c.values["outcome"], "dns")
	c.values["container"] = c.values["service"]
	return c
}

// problems returns what is wrong with an expression: a syntax error, a metric or label
// that does not exist, or a matcher that matches no value.
func (c catalog) problems(expression string) (found []string) {
	complain := func(format string, args ...any) { found = append(found, fmt.Sprintf(format, args...)) }
	expr, err := parser.ParseExpr(expression)
	if err != nil {
		return []string{err.Error()}
	}
	parser.Inspect(expr, func(node parser.Node, _ []parser.Node) error {
		switch n := node.(type) {
		case *parser.VectorSelector:
			for _, metric := range namesOf(n) {
				known, exists := c.labels[metric]
				if !exists {
					complain("there is no metric %q", metric)
					continue
				}
				for _, m := range n.LabelMatchers {
					if m.Name == labels.MetricName {
						continue
					}
					if !slices.Contains(append(known, scraped...), m.Name) {
						complain("%s has no label %s", metric, m.Name)
					}
					values := c.values[m.Name]
					if specific := c.values[metric+" "+m.Name]; specific != nil {
						values = specific
					}
					if values != nil && !slices.ContainsFunc(values, m.Matches) {
						complain("%s has no value that %s matches", metric, m)
					}
				}
			}
		case *parser.AggregateExpr:
			for _, label := range n.Grouping {
				if !c.has(n.Expr, label) {
					complain("no metric in %s has the label %s", n.Expr, label)
				}
			}
		case *parser.BinaryExpr:
			if n.VectorMatching == nil {
				return nil
			}
			for _, label := range n.VectorMatching.MatchingLabels {
				if !c.has(n.LHS, label) || !c.has(n.RHS, label) {
					complain("not both sides of %s have the label %s", n, label)
				}
			}
		}
		return nil
	})
	return found
}

// namesOf returns the metrics of a selector, of which {__name__=~"a|b"} has several.
func namesOf(n *parser.VectorSelector) []string {
	if n.Name != "" {
		return []string{n.Name}
	}
	for _, m := range n.LabelMatchers {
		if m.Name == labels.MetricName {
			return strings.Split(m.Value, "|")
		}
	}
	return []string{""}
}

// has reports whether a metric of an expression has a label.
func (c catalog) has(expr parser.Expr, label string) bool {
	found := slices.Contains(scraped, label)
	parser.Inspect(expr, func(node parser.Node, _ []parser.Node) error {
		if n, ok := node.(*parser.VectorSelector); ok {
			for _, metric := range namesOf(n) {
				found = found || slices.Contains(c.labels[metric], label)
			}
		}
		return nil
	})
	return found
}

func readRules(t *testing.T) []rule {
	t.Helper()
	text, err := os.ReadFile("../" + source)
	require.NoError(t, err)
	rules, err := parseRules(text)
	require.NoError(t, err)
	return rules
}

// addRecords adds the metrics that recording rules make. They have the labels by which
// the rule groups, which their names begin with.
func (c catalog) addRecords(rules []rule) {
	for _, r := range rules {
		if r.Record != "" {
			c.labels[r.Record] = nil
		}
	}
}

// Rules select only metrics, labels and values that exist.
func TestRules_SelectExportedMetrics(t *testing.T) {
	c, rules := readCatalog(t), readRules(t)
	c.addRecords(rules)
	for _, r := range rules {
		assert.Empty(t, c.problems(r.Expr), "%s%s", r.Record, r.Alert)
	}
}

// The check finds each kind of mistake.
func TestProblems_AreFound(t *testing.T) {
	c := readCatalog(t)
	for expression, want := range map[string]string{
		`rate(client_calls_total[5m]`:                                                                "unclosed left parenthesis",
		`client_call_total`:                                                                          `no metric "client_call_total"`,
		`http_server_request_duration_seconds`:                                                       "no metric",
		`{__name__=~"client_calls_total|other"}`:                                                     `no metric "other"`,
		`client_calls_total{code="0"}`:                                                               "no label code",
		`client_calls_total{outcome="error"}`:                                                        "no value that outcome",
		`client_calls_total{container="service-c"}`:                                                  "no value that container",
		`http_server_request_duration_seconds_count{route="/api/date"}`:                              "no value that route",
		`identity_loads_total{result="denied"}`:                                                      "no value that result",
		`sum by (peers) (client_calls_total)`:                                                        "has the label peers",
		`health_ready * on (server) server_connections`:                                              "label server",
		`sum by (namespace, le) (http_server_request_duration_seconds_bucket{code=~"5..", pod="x"})`: "",
	} {
		if found := strings.Join(c.problems(expression), "; "); want == "" {
			assert.Empty(t, found, expression)
		} else {
			assert.Contains(t, found, want, expression)
		}
	}
}

// Each alert has a severity, a summary, a description and a section in docs/runbooks.md,
// which has no others. A unit test in rules_test.yaml expects each to fire.
func TestAlerts_HaveRunbooksAndTests(t *testing.T) {
	runbooks, err := os.ReadFile("../../../docs/runbooks.md")
	require.NoError(t, err)
	tests, err := os.ReadFile("../" + component + "rules_test.yaml")
	require.NoError(t, err)
	var alerts []string
	for _, r := range readRules(t) {
		if r.Alert == "" {
			continue
		}
		alerts = append(alerts, r.Alert)
		assert.Contains(t, []string{"critical", "warning", "info"}, r.Labels["severity"], r.Alert)
		assert.NotEmpty(t, r.Annotations["summary"], r.Alert)
		assert.NotEmpty(t, r.Annotations["description"], r.Alert)
		assert.Equal(t, "docs/runbooks.md#"+strings.ToLower(r.Alert), r.Annotations["runbook"])
		assert.Regexp(t, `alertname: `+r.Alert+`\n\s+exp_alerts:\n\s+- exp_labels`, string(tests), "no test expects it to fire")
	}
	var sections []string
	for _, m := range regexp.MustCompile(`(?m)^## (Tandem\w+)$`).FindAllStringSubmatch(string(runbooks), -1) {
		sections = append(sections, m[1])
	}
	assert.ElementsMatch(t, alerts, sections)
}

// Each query of the dashboard selects only metrics, labels and values that exist, and all
// panels fit on one screen.
func TestDashboard_ShowsExportedMetrics(t *testing.T) {
	text, err := os.ReadFile("../" + component + "dashboard.json")
	require.NoError(t, err)
	var dashboard struct {
		Panels []struct {
			Title   string
			GridPos struct{ X, Y, W, H int }
			Targets []struct{ Expr, LegendFormat string }
		}
		Templating struct {
			List []struct{ Name, Definition string }
		}
	}
	require.NoError(t, json.Unmarshal(text, &dashboard))
	c := readCatalog(t)
	c.addRecords(readRules(t))
	variables := strings.NewReplacer("$__rate_interval", "5m", "$namespace", ".*")
	legend := regexp.MustCompile(`{{(\w+)}}`)
	for _, panel := range dashboard.Panels {
		assert.NotEmpty(t, panel.Targets, panel.Title)
		for _, target := range panel.Targets {
			expression := variables.Replace(target.Expr)
			assert.NotContains(t, expression, "$", "%s: unknown variable", panel.Title)
			require.Empty(t, c.problems(expression), "%s: %s", panel.Title, target.Expr)
			expr, err := parser.ParseExpr(expression)
			require.NoError(t, err)
			for _, m := range legend.FindAllStringSubmatch(target.LegendFormat, -1) {
				assert.True(t, c.has(expr, m[1]), "%s: label %s of the legend", panel.Title, m[1])
			}
		}
		assert.LessOrEqual(t, panel.GridPos.X+panel.GridPos.W, 24, "%s: columns", panel.Title)
		assert.LessOrEqual(t, panel.GridPos.Y+panel.GridPos.H, 25, "%s: rows of one screen", panel.Title)
	}
	query := regexp.MustCompile(`^label_values\((\w+), (\w+)\)$`)
	for _, v := range dashboard.Templating.List {
		if m := query.FindStringSubmatch(v.Definition); m != nil {
			assert.Empty(t, c.problems(m[1]), v.Name)
			assert.Contains(t, append(c.labels[m[1]], scraped...), m[2], v.Name)
		}
	}
}
