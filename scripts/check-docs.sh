#!/usr/bin/env bash
# See --help.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

case ${1-} in
	'') ;;
	-h | --help)
		cat <<'HELP'
usage: scripts/check-docs.sh

Fails if a document (*.md) names a test (`TestName`, `FuzzName` or `BenchmarkName`)
that does not exist, if a row of a table in docs/claims.md names none, or if a
document links to a file that does not exist.
HELP
		exit
		;;
	*)
		echo "check-docs: unknown argument $1; see --help" >&2
		exit 2
		;;
esac

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

git ls-files --cached --others --exclude-standard '*_test.go' | while read -r file; do
	if [[ -f $file ]]; then cat "$file"; fi
done | sed -n 's/^func \([TFB][A-Za-z0-9_]*\)(.*/\1/p' >"$work/tests"

if [[ ! -f docs/claims.md ]]; then
	echo "check-docs: there is no docs/claims.md" >&2 # without it, no claim would be checked
	exit 1
fi
failed=0
documents=$(git ls-files --cached --others --exclude-standard '*.md')
for document in $documents; do
	if [[ ! -f $document ]]; then continue; fi # git lists files that have been deleted since
	{ grep -oE '\]\([^)# ]+' "$document" || true; } | sed 's/^](//' | grep -v '^https\{0,1\}:' >"$work/links" || true
	while read -r link; do
		if [[ ! -e $(dirname "$document")/$link ]]; then
			echo "$document: there is no file $link" >&2
			failed=1
		fi
	done <"$work/links"
	awk -v document="$document" -v tests="$work/tests" '
		BEGIN { while ((getline name < tests) > 0) exists[name] = 1 }
		function complain(what) {
			printf "%s:%d: %s\n", document, FNR, what
			bad = 1
		}
		{
			line = $0
			named = 0
			while (match(line, /`(Test|Fuzz|Benchmark)[A-Z][A-Za-z0-9_]*`/)) {
				name = substr(line, RSTART + 1, RLENGTH - 2)
				line = substr(line, RSTART + RLENGTH)
				named = 1
				if (name !~ /^Test(Name|Subject_Behaviour)$/ && !(name in exists)) complain("there is no test " name)
			}
			row = /^\|/
			# The first row is the heading, and the second the rule under it.
			rows = row ? rows + 1 : 0
			if (document == "docs/claims.md" && rows > 2 && !named) complain("this row names no test")
		}
		END { exit bad }
	' "$document" >&2 || failed=1
done
exit $failed
