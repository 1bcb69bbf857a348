#!/usr/bin/env bash
# Runs every fuzz target: scripts/fuzz.sh 20000x MODULE...
# A count is better than a time such as 30s, with which a run can fail on a busy
# machine just because the time is up (go.dev/issue/75804).
# Inputs that lead somewhere new stay in Go's build cache; an input that fails
# is written to the package's testdata/, and must be committed with its remedy.
set -euo pipefail
cd "$(dirname "$0")/.."
export GOWORK=off

time=$1
shift
failed=()
count=0
log=$(mktemp)
trap 'rm -f "$log"' EXIT

fuzz() { # MODULE PACKAGE-FOLDER TARGET
	(cd "$1" && go test -run='^$' -fuzz="^$3\$" -fuzztime="$time" "./$2") >"$log" 2>&1
}

for module in "$@"; do
	while IFS=: read -r file line; do
		[ -n "$file" ] || continue
		folder=$(dirname "${file#./}")
		target=${line#func }
		echo "fuzzing $module/$folder $target for $time"
		count=$((count + 1))
		fuzz "$module" "$folder" "$target" && continue
		cat "$log"
		failed+=("$module/$folder:$target")
	done < <(cd "$module" && find . -name '*_test.go' -not -path '*/testdata/*' -exec \
		grep -HoE '^func Fuzz[A-Za-z0-9_]*' {} + | sort)
done

echo "fuzzed $count targets, ${#failed[@]} failed"
for f in "${failed[@]+"${failed[@]}"}"; do echo "  $f" >&2; done
[ ${#failed[@]} -eq 0 ]
