#!/usr/bin/env bash
# Checks everything that can be checked without running it, and names at the
# end what failed: scripts/lint.sh MODULE...
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
export GOWORK=off # each module must stand by itself
root=$PWD
modules=("$@")
failed=()
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

check() { # NAME COMMAND...
	local name=$1
	shift
	echo "lint: $name"
	"$@" || failed+=("$name")
}

go_code() { (cd "$1" && "$root/bin/golangci-lint" run --allow-serial-runners --config "$root/.golangci.yml" ./...); }

tidy() {
	(cd "$1" && go mod tidy -diff) && return
	echo "  make fmt does it" >&2
	return 1
}

breaking() {
	if ! git cat-file -e main:proto 2>/dev/null; then
		echo "  skipped: there is no branch main with a folder proto to compare with"
		return
	fi
	mkdir "$work/main" && git archive main proto | tar -x -C "$work/main" && bin/buf breaking proto --against "$work/main/proto"
}

generated() {
	mkdir "$work/generated" && (cd proto && ../bin/buf generate -o "$work/generated") || return
	local ok=0 file
	while read -r file; do
		diff -u "proto/$file" "$work/generated/$file" || ok=1
	done < <({ (cd proto && find . -name '*.pb.go') && (cd "$work/generated" && find . -name '*.pb.go'); } | sort -u)
	[ $ok -eq 0 ] || echo "  make generate, and commit what it changes" >&2
	return $ok
}

shell_scripts() {
	if ! command -v shellcheck >/dev/null; then
		echo "  shellcheck is missing: apt-get install shellcheck, brew install shellcheck, or see shellcheck.net" >&2
		return 1
	fi
	# All files that begin as shell scripts do, whatever their names. grep fails
	# for a file that is deleted but not yet from git.
	git ls-files -z --cached --others --exclude-standard |
		{ xargs -0 grep -slIE -m 1 '^#! ?/.*[/ ](ba|da|k)?sh( |$)' || true; } | xargs shellcheck
}

for m in "${modules[@]}"; do
	check "Go in $m" go_code "$m"
	check "go.mod of $m" tidy "$m"
done
check "contract" bin/buf lint proto
check "contract's format" bin/buf format --diff --exit-code proto
check "contract against main" breaking
check "generated code" generated
check "shell scripts" shell_scripts
if [ -d .github/workflows ]; then
	check "workflows" bin/actionlint
fi

if [ ${#failed[@]} -gt 0 ]; then
	printf 'lint found something in: %s\n' "${failed[@]}" >&2
	exit 1
fi
echo "lint found nothing"
