#!/usr/bin/env bash
# See --help.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

case ${1-} in
	'' | -h | --help)
		cat <<'HELP'
usage: scripts/fuzz.sh COUNTx MODULE...

Runs each fuzz target of the modules for COUNT inputs, such as 20000x. It is a
count and not a duration because a run that ends by time can fail on a busy
machine (go.dev/issue/75804).

Inputs that reach new code stay in Go's build cache. An input that fails is
written to testdata/fuzz/ of its package: commit it together with the fix. GO is
the go command (default go).
HELP
		exit
		;;
esac

export GOWORK=off # each module must build without the others' go.mod
go=${GO:-go}
inputs=$1
shift
count=0
failed=0
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

for module in "$@"; do
	# Lines such as ./internal/domain/domain_test.go:func FuzzKey. find fails if no file has one.
	(cd "$module" && { find . -name '*_test.go' -not -path '*/testdata/*' -exec grep -HoE '^func Fuzz[A-Za-z0-9_]*' {} + || true; }) |
		sort >"$work/targets"
	while IFS=: read -r file function; do
		package=$(dirname "$file")
		target=${function#func }
		count=$((count + 1))
		echo "fuzzing $module/${package#./} $target for $inputs"
		if ! (cd "$module" && "$go" test -run='^$' -fuzz="^$target\$" -fuzztime="$inputs" "$package") </dev/null >"$work/log" 2>&1; then
			cat "$work/log"
			echo "$module/${package#./} $target" >>"$work/failed"
			failed=$((failed + 1))
		fi
	done <"$work/targets"
done

echo "fuzzed $count targets, $failed failed"
if ((failed > 0)); then
	sed 's/^/  /' "$work/failed" >&2
	exit 1
fi
