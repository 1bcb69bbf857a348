#!/usr/bin/env bash
# See --help.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

readonly document=docs/aks.md begin='<!-- begin of the recipe' end='<!-- end of the recipe'

help() {
	cat <<'HELP'
usage: scripts/aks/recipe.sh [--check]

Writes the commands that up.sh --dry-run prints with its default settings into
docs/aks.md. With --check, it fails if other commands are there, and shows the
difference.
HELP
}

compose() {
	local recipe
	# Without the user's settings.
	recipe=$(env -i PATH="$PATH" AKS_ENV=aks.env.example scripts/aks/up.sh --dry-run)
	sed "/^$begin/q" $document
	# shellcheck disable=SC2016 # marks of code
	printf '\n```bash\n%s\n```\n\n' "$recipe"
	sed -n "/^$end/,\$p" $document
}

check=0
case ${1-} in
	'') ;;
	--check) check=1 ;;
	-h | --help)
		help
		exit
		;;
	*)
		help >&2
		exit 2
		;;
esac

for mark in "$begin" "$end"; do
	if ! grep -q "^$mark" $document; then
		echo "recipe: $document has no line that begins with $mark" >&2
		exit 1
	fi
done
text=$(compose)
if ! ((check)); then
	printf '%s\n' "$text" >$document
elif ! diff -u $document - <<<"$text"; then
	echo "recipe: the commands of make aks-up have changed; run make generate, and commit $document" >&2
	exit 1
fi
