#!/usr/bin/env bash
# See --help.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

case ${1-} in
	-h | --help)
		cat <<'HELP'
usage: scripts/lint.sh MODULE...

Checks everything that can be checked without running it, and lists at the end
the checks that failed. make lint builds the tools and passes all modules.

BREAKING_AGAINST is the git reference whose contract must not be broken
(default main). Without a default branch the check is skipped; a reference that
is set must exist. GO is the go command (default go).
HELP
		exit
		;;
esac

export GOWORK=off # each module must build without the others' go.mod
root=$PWD
go=${GO:-go}
failed=''
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

check() { # check NAME COMMAND...
	local name=$1
	shift
	echo "lint: $name"
	"$@" || failed="$failed
  $name"
}

go_code() { (cd "$1" && "$root/bin/golangci-lint" run --allow-serial-runners --config "$root/.golangci.yml" ./...); }

tidy() {
	(cd "$1" && "$go" mod tidy -diff) && return
	echo "  run make fmt" >&2
	return 1
}

# vulnerabilities MODULE: known vulnerabilities in code that MODULE calls. The list comes from the network.
vulnerabilities() {
	(cd "$1" && "$root/bin/govulncheck" ./...) >"$work/vulnerabilities" 2>&1 && return
	if grep -q 'fetching vulnerabilities' "$work/vulnerabilities"; then
		echo "  skipped: the vulnerability database cannot be reached"
		return
	fi
	cat "$work/vulnerabilities"
	return 1
}

breaking() {
	local against=${BREAKING_AGAINST:-main}
	if ! git cat-file -e "$against:proto" 2>/dev/null; then
		if [ -n "${BREAKING_AGAINST-}" ]; then
			echo "  BREAKING_AGAINST is $against, and there is no folder proto at that reference; fetch it first" >&2
			return 1
		fi
		echo "  skipped: there is no branch main to compare with; set BREAKING_AGAINST"
		return
	fi
	mkdir "$work/against" && git archive "$against" proto | tar -x -C "$work/against" && bin/buf breaking proto --against "$work/against/proto"
}

generated() {
	mkdir "$work/generated" && (cd proto && ../bin/buf generate -o "$work/generated") || return
	local failed=0 file
	for file in $({ (cd proto && find . -name '*.pb.go') && (cd "$work/generated" && find . -name '*.pb.go'); } | sort -u); do
		diff -u "proto/$file" "$work/generated/$file" || failed=1
	done
	[ $failed -eq 0 ] || echo "  run make generate, and commit what it changes" >&2
	return $failed
}

metrics_document() { (cd service-a && "$go" test -count=1 -run '^TestMetrics_AreDocumented$' .); }

alert_rules() {
	(cd deploy/e2e && "$go" run ./rules --check) || return
	if ! command -v promtool >/dev/null; then
		echo "  the tests of the rules are skipped: promtool is missing (Debian's package prometheus)"
		return
	fi
	(cd deploy/components/prometheus && promtool check rules rules.yaml && promtool test rules rules_test.yaml)
}

shell_scripts() {
	if ! command -v shellcheck >/dev/null; then
		echo "  shellcheck is missing: apt-get install shellcheck, brew install shellcheck, or see shellcheck.net" >&2
		return 1
	fi
	scripts/check-shell.sh --list | xargs shellcheck
}

for m in "$@"; do
	check "Go in $m" go_code "$m"
	check "go.mod of $m" tidy "$m"
done
for s in $(scripts/services.sh); do
	check "known vulnerabilities in $s" vulnerabilities "$s"
done
check "contract" bin/buf lint proto
check "format of the contract" bin/buf format --diff --exit-code proto
check "breaking changes of the contract" breaking
check "generated code" generated
check "shell scripts" shell_scripts
check "shell scripts on macOS" scripts/check-shell.sh
check "list of services" scripts/check-services.sh
check "documents" scripts/check-docs.sh
check "recipe in docs/aks.md" scripts/aks/recipe.sh --check
check "list of metrics in docs/metrics.md" metrics_document
check "alert rules" alert_rules
check "manifests" scripts/kubeconform.sh
check "workflows" bin/actionlint

if [ -n "$failed" ]; then
	echo "lint failed:$failed" >&2
	exit 1
fi
echo "lint passed"
