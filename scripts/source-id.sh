#!/usr/bin/env bash
# See --help.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

case ${1-} in
	'') ;;
	-h | --help)
		cat <<'HELP'
usage: scripts/source-id.sh

Prints an id of the files that the Dockerfile copies, as they are in the folder,
committed or not. Images with this tag need not be built again.
HELP
		exit
		;;
	*)
		echo "source-id: unknown argument $1; see --help" >&2
		exit 2
		;;
esac

services=$(scripts/services.sh)
index=$(mktemp)
trap 'rm -f "$index"' EXIT
rm "$index" # git refuses an empty file
export GIT_INDEX_FILE=$index
# shellcheck disable=SC2086 # one word for each service
git add --all -- Dockerfile .dockerignore kit proto $services
tree=$(git write-tree)
echo "src-${tree:0:12}"
