#!/usr/bin/env bash
# See --help.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

case ${1-} in
	'') ;;
	-h | --help)
		cat <<'HELP'
usage: scripts/images.sh

Builds the image of each service (scripts/services.sh) for this machine, with
two tags: localhost/tandem/SERVICE:dev, and :dev-ID, where ID is from the
image's id and so changes only with the contents. Prints the second, one a line.

VERSION and REVISION are stored in the images; by default git's describe and HEAD.
HELP
		exit
		;;
	*)
		echo "images: unknown argument $1; see --help" >&2
		exit 2
		;;
esac

version=${VERSION:-$(git describe --tags --always --dirty 2>/dev/null || echo dev)}
revision=${REVISION:-$(git rev-parse HEAD 2>/dev/null || echo unknown)}
services=$(scripts/services.sh)

for service in $services; do
	image=localhost/tandem/$service
	echo "images: building $image $version" >&2
	# With provenance, the result is an image index, whose contents kind load may not find (kind#3795).
	docker buildx build --load --provenance=false --tag "$image:dev" \
		--build-arg "SERVICE=$service" --build-arg "VERSION=$version" --build-arg "REVISION=$revision" . >&2
	id=$(docker image inspect --format '{{.Id}}' "$image:dev")
	id=${id#sha256:}
	tagged=$image:dev-${id:0:12}
	docker tag "$image:dev" "$tagged"
	# Remove the tags of earlier builds.
	docker image ls --filter "reference=$image:dev-*" --format '{{.Repository}}:{{.Tag}}' | { grep -vxF "$tagged" || true; } |
		while read -r old; do docker image rm "$old" >/dev/null; done
	echo "$tagged"
done
