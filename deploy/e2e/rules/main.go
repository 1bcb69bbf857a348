// Rules writes the alert rules of deploy/components/prometheus/rules.yaml in the forms
// that the Prometheus operator and Azure's managed Prometheus take. make generate runs it,
// and make lint with --check, which fails if a file would change.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"

	"sigs.k8s.io/yaml"
)

// Paths from deploy/e2e.
const (
	component     = "../components/prometheus/"
	source        = component + "rules.yaml"
	operatorRules = component + "prometheusrule.yaml"
	azureRules    = "../azure/rules.json"
)

func main() {
	if err := run(len(os.Args) == 2 && os.Args[1] == "--check"); err != nil {
		fmt.Fprintln(os.Stderr, "rules:", err)
		os.Exit(1)
	}
}

func run(check bool) error {
	text, err := os.ReadFile(source)
	if err != nil {
		return err
	}
	template, err := os.ReadFile(azureRules)
	if err != nil {
		return err
	}
	azure, err := forAzure(string(template), text)
	if err != nil {
		return err
	}
	for file, want := range map[string]string{operatorRules: forOperator(string(text)), azureRules: azure} {
		if !check {
			if err := os.WriteFile(file, []byte(want), 0o600); err != nil {
				return err
			}
			continue
		}
		if got, err := os.ReadFile(file); err != nil || string(got) != want {
			return fmt.Errorf("%s does not follow from rules.yaml: run make generate, and commit it", strings.TrimPrefix(file, "../"))
		}
	}
	return nil
}

// rule is a recording rule or an alert of Prometheus.
type rule struct {
	Record      string            `json:"record"`
	Alert       string            `json:"alert"`
	Expr        string            `json:"expr"`
	For         string            `json:"for"`
	Labels      map[string]string `json:"labels"`
	Annotations map[string]string `json:"annotations"`
}

// parseRules returns the rules of the only group of text.
func parseRules(text []byte) ([]rule, error) {
	var file struct {
		Groups []struct {
			Rules []rule `json:"rules"`
		} `json:"groups"`
	}
	if err := yaml.Unmarshal(text, &file); err != nil {
		return nil, err
	}
	if len(file.Groups) != 1 {
		return nil, errors.New("rules.yaml: want one group, because the template for Azure has one")
	}
	return file.Groups[0].Rules, nil
}

// forOperator returns a PrometheusRule: the groups are its spec, word for word.
func forOperator(text string) string {
	_, groups, _ := strings.Cut(text, "\ngroups:\n")
	var out strings.Builder
	out.WriteString(`# Written by make generate from rules.yaml, whose comments explain the rules.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: tandem
  labels: { app.kubernetes.io/part-of: tandem }
spec:
  groups:
`)
	for line := range strings.Lines(groups) {
		switch {
		case strings.HasPrefix(strings.TrimSpace(line), "#"):
		case line == "\n":
			out.WriteString(line)
		default:
			out.WriteString("  " + line)
		}
	}
	return out.String()
}

// azureRule is a rule of an Azure rule group.
type azureRule struct {
	Record      string            `json:"record,omitempty"`
	Alert       string            `json:"alert,omitempty"`
	Expression  string            `json:"expression"`
	For         string            `json:"for,omitempty"`
	Severity    *int              `json:"severity,omitempty"`
	Enabled     bool              `json:"enabled"`
	Annotations map[string]string `json:"annotations,omitempty"`
	Resolve     string            `json:"resolveConfiguration,omitempty"`
	Actions     string            `json:"actions,omitempty"`
}

// azureSeverities are Azure's numbers, of which 0 is the most severe.
var azureSeverities = map[string]int{"critical": 1, "warning": 2, "info": 3}

// maxAzureRules is Azure's limit of rules in a group.
const maxAzureRules = 20

// oneLine matches the line breaks and indentation in an expression.
var oneLine = regexp.MustCompile(`\s*\n\s*`)

// forAzure returns the ARM template with its list of rules replaced.
func forAzure(template string, text []byte) (string, error) {
	rules, err := parseRules(text)
	if err != nil {
		return "", err
	}
	if len(rules) > maxAzureRules {
		return "", fmt.Errorf("rules.yaml has %d rules; Azure takes %d in a group", len(rules), maxAzureRules)
	}
	var list []azureRule
	for _, r := range rules {
		converted := azureRule{Record: r.Record, Alert: r.Alert, Enabled: true, Expression: oneLine.ReplaceAllString(strings.TrimSpace(r.Expr), " ")}
		if r.Alert != "" {
			severity, known := azureSeverities[r.Labels["severity"]]
			if !known {
				return "", fmt.Errorf("%s: severity=%q: want critical, warning or info", r.Alert, r.Labels["severity"])
			}
			converted.For, converted.Severity, converted.Annotations = "PT"+strings.ToUpper(r.For), &severity, r.Annotations
			converted.Resolve, converted.Actions = "[variables('resolve')]", "[variables('actions')]"
		}
		list = append(list, converted)
	}
	var out bytes.Buffer
	encoder := json.NewEncoder(&out)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("        ", "  ")
	if err := encoder.Encode(list); err != nil {
		return "", err
	}
	const begin, end = "        \"rules\": ", "\n        ]\n"
	before, rest, found := strings.Cut(template, begin)
	_, after, ended := strings.Cut(rest, end)
	if !found || !ended {
		return "", errors.New("azure/rules.json has no list of rules to replace")
	}
	return before + begin + out.String() + after, nil
}
