#!/usr/bin/env bash
# See --help.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

case ${1-} in
	'') ;;
	-h | --help)
		cat <<'HELP'
usage: scripts/services.sh

Prints the services, one a line: the modules of go.work with a main.go in their
folder. All other lists of services are made from this one, or compared with it
by scripts/check-services.sh.
HELP
		exit
		;;
	*)
		echo "services: unknown argument $1; see --help" >&2
		exit 2
		;;
esac

modules=$(sed -n 's|^\(use\)\{0,1\}[[:space:]]*\./\([^[:space:]]*\).*|\2|p' go.work)
for module in $modules; do
	if [[ -f $module/main.go ]]; then echo "$module"; fi
done
