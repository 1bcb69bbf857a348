package scripts_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// The scripts of aks/ run against the real az in deploy/e2e/azure. The tests here need no az.

// runAKS runs a script of aks/ with only the settings given, where az is the text of a script, or missing. It returns what
// the script printed, and whether it succeeded.
func runAKS(t *testing.T, az string, settings []string, arguments ...string) (stdout, stderr string, ok bool) {
	t.Helper()
	folder := t.TempDir()
	file := filepath.Join(folder, "aks.env")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	for _, tool := range []string{"bash", "cat", "cksum", "cut", "dirname", "git", "grep", "mktemp", "rm", "sed", "tail", "tr"} {
		path, err := exec.LookPath(tool)
		require.NoError(t, err)
		require.NoError(t, os.Symlink(path, filepath.Join(folder, tool)))
	}
	for _, tool := range []string{"curl", "kubectl", "kubelogin"} { // of a user without contexts
		require.NoError(t, os.WriteFile(filepath.Join(folder, tool), []byte("#!/bin/sh\n"), 0o700))
	}
	if az != "" {
		require.NoError(t, os.WriteFile(filepath.Join(folder, "az"), []byte("#!/bin/sh\n"+az), 0o700))
	}
	var out, errOut strings.Builder
	cmd := exec.CommandContext(t.Context(), "bash", arguments...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = "aks", &out, &errOut
	cmd.Env = append([]string{"PATH=" + folder, "TMPDIR=" + folder, "AKS_ENV=" + file}, settings...)
	ok = cmd.Run() == nil
	return out.String(), errOut.String(), ok
}

// dryRun returns the recipe that up.sh prints.
func dryRun(t *testing.T, settings ...string) string {
	t.Helper()
	recipe, problems, ok := runAKS(t, "echo az was called >&2; exit 1", settings, "up.sh", "--dry-run")
	require.True(t, ok, problems)
	assert.Empty(t, problems)
	return recipe
}

// The recipe is a script for bash, and asks Azure for what only Azure knows. Printing it asks nothing.
func TestAKSDryRun_PrintsScript(t *testing.T) {
	for _, settings := range [][]string{
		nil, {"AKS_SKU=automatic"}, {"MESH=istio"}, {"IMAGES=push"}, {"IMAGES=import", "RELEASE=v1.2.3", "RELEASE_IMAGES=ghcr.io/o/tandem"},
	} {
		t.Run(strings.Join(settings, " "), func(t *testing.T) {
			recipe := dryRun(t, settings...)
			check := exec.CommandContext(t.Context(), "bash", "-n")
			check.Stdin = strings.NewReader(recipe)
			problems, err := check.CombinedOutput()
			require.NoError(t, err, "%s", problems)
			assert.Contains(t, recipe, `REGISTRY_SERVER=$(az acr show`)
			assert.Contains(t, recipe, `digest: "$SERVICE_A_DIGEST"`)
			assert.NotContains(t, recipe, "azurecr.io")
		})
	}
}

// Application routing and the Istio add-on exclude each other. AKS Automatic sets nodes and network itself.
func TestAKSDryRun_FollowsSettings(t *testing.T) {
	recipe := dryRun(t)
	assert.Contains(t, recipe, "--enable-app-routing-istio")
	assert.Contains(t, recipe, "--zones 1 2 3")
	assert.NotContains(t, recipe, "--enable-azure-service-mesh")

	recipe = dryRun(t, "MESH=istio")
	assert.Contains(t, recipe, "--enable-azure-service-mesh")
	assert.Contains(t, recipe, "overlays/aks-istio")
	assert.NotContains(t, recipe, "--enable-app-routing-istio")

	recipe = dryRun(t, "AKS_SKU=automatic")
	assert.Contains(t, recipe, "--sku automatic")
	assert.NotContains(t, recipe, "--node-count")

	assert.NotContains(t, dryRun(t, "AKS_ZONES=none"), "--zones")
}

// recipe.sh writes what up.sh prints with the default settings between the marks of docs/aks.md, and finds a difference.
func TestAKSRecipe_WrittenBetweenMarks(t *testing.T) {
	const before, after = "# AKS\n\n<!-- begin of the recipe, written by make generate -->\n", "<!-- end of the recipe -->\n\nmore\n"
	files := map[string]string{
		"docs/aks.md":       before + "old\n" + after,
		"aks.env.example":   "",
		"scripts/aks/up.sh": "#!/bin/sh\necho \"az $AKS_ENV $AKS_GROUP $1\"\n",
	}
	t.Setenv("AKS_GROUP", "mine")
	run := newRepository(t, "aks/recipe.sh", files)
	output, err := run("--check")
	require.Error(t, err)
	assert.Contains(t, output, "make generate")
	output, err = run()
	require.NoError(t, err, output)
	output, err = run("--check")
	require.NoError(t, err, output)
	output, err = run("--print")
	require.Error(t, err, output)

	files["docs/aks.md"] = before + "\n```bash\naz aks.env.example  --dry-run\n```\n\n" + after
	output, err = newRepository(t, "aks/recipe.sh", files)("--check")
	require.NoError(t, err, output)
	files["docs/aks.md"] = "no marks\n"
	output, err = newRepository(t, "aks/recipe.sh", files)()
	require.Error(t, err)
	assert.Contains(t, output, "docs/aks.md has no line")
}

// A setting is taken from the environment before the file, and from the file before its default.
func TestAKSSettings_EnvironmentFirst(t *testing.T) {
	file := filepath.Join(t.TempDir(), "aks.env")
	require.NoError(t, os.WriteFile(file, []byte("# a comment\nAKS_GROUP=from-file\nAKS_LOCATION=westeurope"), 0o600))
	recipe := dryRun(t, "AKS_ENV="+file, "AKS_GROUP=from-environment")
	assert.Contains(t, recipe, "az group create --name from-environment --location westeurope")
	assert.Contains(t, recipe, "--max-count 5")
}

// A setting that does not work ends the script in one line that names it.
func TestAKSSettings_Rejected(t *testing.T) {
	file := filepath.Join(t.TempDir(), "aks.env")
	require.NoError(t, os.WriteFile(file, []byte("AKS_GRUOP=x\n"), 0o600))
	for _, tc := range []struct{ setting, want string }{
		{"MESH=linkerd", "MESH=linkerd is not one of: none istio"},
		{"AKS_SKU=big", "AKS_SKU=big is not one of: base automatic"},
		{"AKS_NODES_MIN=6", "AKS_NODES_MIN=6 and AKS_NODES_MAX=5"},
		{"AKS_REGISTRY=My-Registry", "AKS_REGISTRY=My-Registry is not a name of 5 to 50"},
		{"IMAGES=import", "IMAGES=import needs RELEASE"},
		{"AKS_ENV=" + file, "AKS_GRUOP is not a setting"},
		{"AKS_ENV=/missing", "there is no file /missing"},
	} {
		_, problems, ok := runAKS(t, "", []string{tc.setting}, "up.sh", "--dry-run")
		assert.False(t, ok, tc.setting)
		assert.Contains(t, problems, tc.want)
		assert.Equal(t, 1, strings.Count(problems, "\n"), problems)
	}
}

// The aks.env.example lists every setting with its default.
func TestAKSSettings_ExampleWorks(t *testing.T) {
	example, err := os.ReadFile("../aks.env.example")
	require.NoError(t, err)
	text := strings.ReplaceAll(string(example), "\n#AKS_", "\nAKS_")
	for _, name := range []string{"MESH", "IMAGES", "RELEASE", "RELEASE_IMAGES"} {
		text = strings.ReplaceAll(text, "\n#"+name+"=", "\n"+name+"=")
	}
	file := filepath.Join(t.TempDir(), "aks.env")
	require.NoError(t, os.WriteFile(file, []byte(text), 0o600))
	assert.Equal(t, dryRun(t), dryRun(t, "AKS_ENV="+file))
}

// Before anything is changed, the scripts say in one line what az lacks.
func TestAKSUp_ExplainsAz(t *testing.T) {
	const version = `case "$*" in version*) echo 2.91.0; exit ;; `
	for name, tc := range map[string]struct{ az, want string }{
		"missing":    {"", "az is not on PATH; install azure-cli"},
		"too old":    {`echo 2.85.0`, "az is 2.85.0, and 2.86.0 or later is needed; run az upgrade"},
		"logged out": {version + `esac; echo "ERROR: Please run 'az login' to setup account." >&2; exit 1`, "az is not logged in; run az login"},
	} {
		t.Run(name, func(t *testing.T) {
			_, problems, ok := runAKS(t, tc.az, nil, "up.sh", "--yes")
			assert.False(t, ok)
			assert.Contains(t, problems, "aks-up: "+tc.want)
			assert.Equal(t, 1, strings.Count(problems, "\n"), problems)
		})
	}
}

// Without --yes and without an answer, nothing is changed.
func TestAKSUp_AsksFirst(t *testing.T) {
	const az = `case "$*" in version*) echo 2.91.0 ;; "account show"*) echo 0000 Test ;; *) echo "called: $*" >&2; exit 1 ;; esac`
	plan, problems, ok := runAKS(t, az, nil, "up.sh")
	assert.False(t, ok)
	assert.Contains(t, plan, "Together about $0.40 an hour")
	assert.Contains(t, problems, "nothing was changed")
	assert.NotContains(t, problems, "called:")
	document, err := os.ReadFile("../docs/aks.md")
	require.NoError(t, err)
	assert.Contains(t, string(document), "```text\n"+plan+"```\n")
}

// azWithGroup is an az whose subscription 0000 has what make aks-up created. It appends its arguments to the file $CALLS.
const azWithGroup = `echo "$*" >>"$CALLS"
case "$*" in
	version*) echo 2.91.0 ;;
	"account show"*) echo 0000 Test ;;
	"group exists"*) echo true ;;
	"group show"*) echo "/subscriptions/0000/resourceGroups/tandem(1) tandem-aks-up" ;;
	"identity list"*) echo principal ;;
	"role assignment list"*)
		echo principal inside /subscriptions/0000/resourcegroups/Tandem\(1\)/providers/x/y/z
		echo principal group /subscriptions/0000/resourcegroups/tandem\(1\)
		echo principal outside /subscriptions/0000/resourceGroups/tandem1/providers/x/y/z
		echo principal longer /subscriptions/0000/resourceGroups/tandem\(1\)2
		echo other foreign /subscriptions/0000
		;;
	*" workspace list"*) echo tandem-logs ;;
esac`

// What is deleted is of the subscription that the question named, whatever az account set chooses meanwhile.
func TestAKSDown_NamesSubscription(t *testing.T) {
	calls := strings.Split(strings.TrimSpace(runDown(t, "AKS_GROUP=tandem(1)")), "\n")
	require.Greater(t, len(calls), 5)
	for _, call := range calls[2:] { // after az version, and az account show, which finds the subscription
		assert.True(t, strings.HasSuffix(call, " --subscription 0000"), call)
	}
}

// Azure deletes the role assignments inside the group, whatever the case of their scopes. Those outside are deleted one by one, if
// they are of an identity of the group.
func TestAKSDown_FindsAssignments(t *testing.T) {
	calls := runDown(t, "AKS_GROUP=Tandem(1)")
	assert.Contains(t, calls, "\nrole assignment delete --ids outside ")
	assert.Contains(t, calls, "\nrole assignment delete --ids longer ")
	assert.Equal(t, 2, strings.Count(calls, "role assignment delete"), calls)
}

// runDown returns the calls of az that down.sh makes with the setting.
func runDown(t *testing.T, setting string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "calls")
	_, problems, ok := runAKS(t, azWithGroup, []string{"CALLS=" + file, setting}, "down.sh", "--yes", "--purge")
	assert.True(t, ok, problems)
	calls, err := os.ReadFile(file)
	require.NoError(t, err)
	return string(calls)
}

// Each message in the table of docs/aks.md is one that a script prints.
func TestAKSDocs_MessagesAreTheScripts(t *testing.T) {
	var messages []*regexp.Regexp
	for _, file := range []string{"aks/common.sh", "aks/up.sh", "rollout.sh"} {
		script, err := os.ReadFile(file)
		require.NoError(t, err)
		for _, match := range regexp.MustCompile(`\bfail "((?:[^"\\$]|\\.|\$\([^)]*\)+|\$)*)"`).FindAllStringSubmatch(string(script), -1) {
			message := regexp.QuoteMeta(strings.ReplaceAll(match[1], `\"`, `"`))
			message = regexp.MustCompile(`\\\$(\w+|\\\{.*?\\\}|\\\(.*?(\\\))+)`).ReplaceAllString(message, `.+`)
			messages = append(messages, regexp.MustCompile("^"+message+"$"))
		}
	}
	require.Greater(t, len(messages), 20)
	document, err := os.ReadFile("../docs/aks.md")
	require.NoError(t, err)
	_, table, found := strings.Cut(string(document), "| message | what to do |\n|---|---|\n")
	require.True(t, found)
	table, _, _ = strings.Cut(table, "\n\n")
	for row := range strings.SplitSeq(table, "\n") {
		quoted := strings.Split(row, "`")[1]
		assert.True(t, slices.ContainsFunc(messages, func(m *regexp.Regexp) bool { return m.MatchString(quoted) }), "no script prints: %s", quoted)
	}
}
