package azure

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"example.com/tandem/deploy/e2e/azure/arm"
)

// az's own parser accepts every command of az in the code of the documents, in the workflows, and in the recipes of all
// settings: its options exist, their values are allowed, and none is missing.
func TestAz_ParsesEveryCommand(t *testing.T) {
	t.Parallel()
	r := newRig(t, arm.Options{})
	var lines []string
	for _, pattern := range []string{"*.md", "docs/*.md", "deploy/*.md", ".github/workflows/*", ".github/actions/*/*"} {
		files, err := filepath.Glob(filepath.Join(r.root, pattern))
		require.NoError(t, err)
		require.NotEmpty(t, files, pattern)
		for _, file := range files {
			lines = append(lines, codeWithAz(t, file)...)
		}
	}
	documents := len(lines)
	assert.Positive(t, documents)
	for _, settings := range [][]string{nil, {"MESH=istio"}, {"AKS_SKU=automatic"}, {"IMAGES=push"}, {"IMAGES=import", "RELEASE=v1.2.3", "RELEASE_IMAGES=ghcr.io/o/tandem"}} {
		recipe := r.script("up.sh", settings, "--dry-run")
		recipe.require(t)
		lines = append(lines, withAz(recipe.stdout)...)
	}
	defer done(t, time.Now(), fmt.Sprintf("nothing: %d commands of documents and workflows, and five recipes, parsed", documents), "az's parser accepts each")
	output, err := r.parse(lines)
	require.NoError(t, err, "%s", output)
	t.Logf("%s commands", strings.TrimSpace(output))
}

// The check finds an option that does not exist, a value that is not allowed, and one that is missing.
func TestAz_ParserRejects(t *testing.T) {
	t.Parallel()
	r := newRig(t, arm.Options{})
	for line, want := range map[string]string{
		"az group create --name x --location y --bogus":       "unrecognized arguments: --bogus",
		"X=$(az aks create -g x -n y --sku large --query id)": "'large' is not a valid value",
		"if az group show | grep x; then echo; fi":            "required: --name",
		"- run: az aks get-credential --name x":               "misspelled",
		"echo \"unbalanced":                                   "closing quotation",
	} {
		output, err := r.parse([]string{line})
		assert.Error(t, err, line)
		assert.Contains(t, output, want)
	}
}

// parse gives the lines to testdata/parse.py, which needs az's Python.
func (r *rig) parse(lines []string) (string, error) {
	r.t.Helper()
	script, err := filepath.Abs("testdata/parse.py")
	require.NoError(r.t, err)
	python, found := pythonOf(installed.az)
	if !found {
		r.t.Skipf("%s is not az's Python; TANDEM_AZURE_INSTALL=1 installs an az that has one", python)
	}
	cmd := exec.Command(python, script)
	cmd.Env, cmd.Stdin = r.environment, strings.NewReader(strings.Join(lines, "\n")+"\n")
	output, err := cmd.CombinedOutput()
	return string(output), err
}

// codeWithAz returns the lines of code in a file that contain az. Code in Markdown is fenced or indented.
func codeWithAz(t *testing.T, file string) []string {
	t.Helper()
	content, err := os.ReadFile(file)
	require.NoError(t, err)
	if filepath.Ext(file) != ".md" {
		return withAz(string(content))
	}
	var code bytes.Buffer
	fenced := false
	for line := range strings.SplitSeq(string(content), "\n") {
		switch {
		case strings.HasPrefix(strings.TrimSpace(line), "```"):
			fenced = !fenced
		case fenced || strings.HasPrefix(line, "    "):
			fmt.Fprintln(&code, line)
		}
	}
	return withAz(code.String())
}

// withAz returns the lines of a shell script that contain az. A line that a backslash continues is one.
func withAz(script string) []string {
	var lines []string
	for line := range strings.SplitSeq(strings.ReplaceAll(script, "\\\n", " "), "\n") {
		if strings.Contains(line, "az ") {
			lines = append(lines, line)
		}
	}
	return lines
}
