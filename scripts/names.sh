#!/usr/bin/env bash
# See --help.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

case ${1-} in
	'') ;;
	-h | --help)
		cat <<'HELP'
usage: scripts/names.sh

Lists every line that contains the project's name: first the module path
(example.com/tandem), by file with the number of lines, then the name alone
(tandem, Tandem, TANDEM), by line. To rename a copy of this project, change
these. Checksums and binary files are left out.
HELP
		exit
		;;
	*)
		echo "names: unknown argument $1; see --help" >&2
		exit 2
		;;
esac

readonly path='example\.com/tandem'
files() { git ls-files -z --cached --others --exclude-standard -- . ':!*.sum'; }

echo "The module path, lines in each file:"
files | { xargs -0 grep -sIcE "$path" || true; } | grep -v ':0$' | sed 's/^/  /'
echo
echo "The name alone:"
files | { xargs -0 grep -sInEi 'tandem' || true; } | awk '{
	line = $0
	gsub(/example\.com\/tandem[A-Za-z0-9_\/-]*/, "", line)
	if (tolower(line) ~ /tandem/) print "  " substr($0, 1, 160)
}'
