package scripts_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// newRepository makes a git repository with a copy of a script and the given files. It returns a function that runs the
// script there.
func newRepository(t *testing.T, script string, files map[string]string) func(args ...string) (output string, err error) {
	t.Helper()
	root := t.TempDir()
	require.NoError(t, exec.CommandContext(t.Context(), "git", "init", "--quiet", root).Run())
	text, err := os.ReadFile(script)
	require.NoError(t, err)
	write := func(path, text string) {
		path = filepath.Join(root, path)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o750))
		require.NoError(t, os.WriteFile(path, []byte(text), 0o700))
	}
	write("scripts/"+script, string(text))
	for path, text := range files {
		write(path, text)
	}
	return func(args ...string) (string, error) {
		cmd := exec.CommandContext(t.Context(), filepath.Join(root, "scripts", script), args...)
		cmd.Env = append(os.Environ(), minimalTools(t)...)
		output, err := cmd.CombinedOutput()
		return string(output), err
	}
}

// minimalTools returns an environment with busybox's tools in front of GNU's, and with POSIXLY_CORRECT: a script that
// runs there uses no option that only GNU has. Without busybox it only has POSIXLY_CORRECT.
func minimalTools(t *testing.T) []string {
	t.Helper()
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		return []string{"POSIXLY_CORRECT=1"}
	}
	dir := t.TempDir()
	for tool := range strings.FieldsSeq("awk basename cat cut date diff dirname find grep head ls mkdir mktemp mv rm sed sort tail tr uniq wc xargs") {
		require.NoError(t, os.Symlink(busybox, filepath.Join(dir, tool)))
	}
	return []string{"POSIXLY_CORRECT=1", "PATH=" + dir + ":" + os.Getenv("PATH")}
}

// Each construct that macOS does not have is found, with its line and what to use instead.
func TestCheckShell_FindsNewConstructs(t *testing.T) {
	for _, line := range []string{
		`mapfile -t lines <file`,
		`declare -A colors`,
		`local -n reference=$1`,
		`echo "${name,,}"`,
		`echo "${name^^}"`,
		`echo "${name@Q}"`,
		`make |& tee log`,
		`make &>>log`,
		`coproc cat`,
		`shopt -s inherit_errexit`,
		`shopt -s globstar`,
		`wait -n`,
		`echo "$EPOCHSECONDS"`,
		`printf '%(%F)T\n'`,
		`echo "${list[-1]}"`,
		`[[ -v name ]]`,
		`while read -r line; do :; done < <(ls)`,
		`case x in x) ;;& esac`,
		`for i in {1..9..2}; do :; done`,
		`ls "${files[@]}"`,
		`sed -i s/a/b/ file`,
		`sed 's/\s//' file`,
		`grep -P x file`,
		`grep -E '\d' file`,
		`find . | xargs -r ls`,
		`date -d tomorrow`,
		`readlink -f file`,
		`stat -c %s file`,
		`find . -printf '%s\n'`,
		`sort -V file`,
		`mktemp --tmpdir x`,
		`timeout 5 make`,
	} {
		t.Run(line, func(t *testing.T) {
			run := newRepository(t, "check-shell.sh", map[string]string{"tool": "#!/bin/bash\n" + line + "\n"})
			output, err := run()
			require.Error(t, err)
			assert.Contains(t, output, "tool:2: ")
			assert.Contains(t, output, line)
			assert.NotContains(t, output, "scripts/check-shell.sh:")
		})
	}
}

func TestCheckShell_FindsNewMakeSyntax(t *testing.T) {
	for _, line := range []string{
		"VERSION != git describe",
		"VERSION ::= 1",
		"a b &: c",
		"X := $(file <version)",
		".ONESHELL:",
		"\tgrep -P x file",
	} {
		t.Run(line, func(t *testing.T) {
			run := newRepository(t, "check-shell.sh", map[string]string{"more.mk": "X := $(shell ls)\n" + line + "\n"})
			output, err := run()
			require.Error(t, err)
			assert.Contains(t, output, "more.mk:2: ")
			assert.NotContains(t, output, "more.mk:1: ")
		})
	}
}

func TestCheckShell_PassesForRepository(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), "./check-shell.sh")
	cmd.Env = append(os.Environ(), minimalTools(t)...)
	output, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", output)
}

func TestCheckShell_AcceptsPortableScripts(t *testing.T) {
	run := newRepository(t, "check-shell.sh", map[string]string{
		"tool": `#!/usr/bin/env bash
# mapfile, in a comment
set -euo pipefail
list=(a b)
ls ${list[@]+"${list[@]}"}
ls "${list[@]}" # never empty
sed -n 's/^[[:space:]]*a//p' file | grep -E '^[0-9]+$' | xargs -0 ls
date +%s
make >>log 2>&1
`,
		"other": "mapfile, but not in a shell script\n",
	})
	output, err := run()
	require.NoError(t, err, output)
	assert.Empty(t, output)
	output, err = run("--list")
	require.NoError(t, err)
	assert.ElementsMatch(t, []string{"scripts/check-shell.sh", "tool"}, strings.Fields(output))
}

func TestCheckDocs_FindsMissingTestsAndFiles(t *testing.T) {
	const tests = "package x\n\nfunc TestPair_SpreadsCalls(t *testing.T) {}\n"
	const heading = "| claim | test |\n|---|---|\n"
	for name, tc := range map[string]struct{ claims, readme, deploy, want string }{
		"the test exists": {claims: "| calls spread | `TestPair_SpreadsCalls` |\n"},
		"the test is missing": {
			claims: "| calls spread | `TestPair_SpreadsCall` |\n",
			want:   "docs/claims.md:3: there is no test TestPair_SpreadsCall\n",
		},
		"a row without a test": {
			claims: "| calls spread | |\n",
			want:   "docs/claims.md:3: this row names no test\n",
		},
		"missing elsewhere":     {deploy: "See `TestGone`.\n", want: "deploy/README.md:1: there is no test TestGone\n"},
		"missing in the README": {readme: "See `TestGone`.\n", want: "README.md:1: there is no test TestGone\n"},
		"a placeholder":         {readme: "`go test -run TestName`, `TestName`\n"},
		"a link to no file":     {readme: "[see](docs/gone.md)\n", want: "README.md: there is no file docs/gone.md\n"},
		"links":                 {readme: "[a](docs/claims.md#heading) [b](https://example.com) [c](#here) [d](docs)\n"},
	} {
		t.Run(name, func(t *testing.T) {
			run := newRepository(t, "check-docs.sh", map[string]string{
				"x_test.go": tests, "docs/claims.md": heading + tc.claims,
				"README.md": tc.readme, "deploy/README.md": tc.deploy,
			})
			output, err := run()
			assert.Equal(t, tc.want, output)
			assert.Equal(t, tc.want != "", err != nil)
		})
	}
}

// A missing docs/claims.md fails: otherwise no claim would be checked.
func TestCheckDocs_NeedsTheDocument(t *testing.T) {
	run := newRepository(t, "check-docs.sh", map[string]string{"x_test.go": "", "README.md": ""})
	output, err := run()
	require.Error(t, err)
	assert.Equal(t, "check-docs: there is no docs/claims.md\n", output)
}

// doctor lists the tools that some verbs need, and fails only without the tools that all verbs need.
func TestDoctor_ReportsMissingTools(t *testing.T) {
	doctor := func(goCommand string) (string, error) {
		cmd := exec.CommandContext(t.Context(), "./doctor.sh")
		cmd.Env = append(append(os.Environ(), minimalTools(t)...), "GO="+goCommand)
		output, err := cmd.CombinedOutput()
		return string(output), err
	}
	output, err := doctor("go")
	require.NoError(t, err, output)
	assert.Regexp(t, `(?m)^go +\d+\.\d+`, output)
	assert.Regexp(t, `(?m)^kubectl `, output)
	output, err = doctor("no-such-go")
	require.Error(t, err)
	assert.Regexp(t, `(?m)^go +- +everything +missing: go.dev/dl$`, output)
}

func TestNames_ListsEveryPlace(t *testing.T) {
	run := newRepository(t, "names.sh", map[string]string{
		"go.mod": "module example.com/tandem/kit\n", "notes.txt": "nothing here\n", "page.html": "<h1>Tandem</h1>\n",
	})
	output, err := run()
	require.NoError(t, err, output)
	assert.Contains(t, output, "go.mod:1\n")
	assert.Contains(t, output, "page.html:1:<h1>Tandem</h1>\n")
	assert.NotContains(t, output, "notes.txt")
}
