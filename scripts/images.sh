#!/usr/bin/env bash
# See --help.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

case ${1-} in
	'') ;;
	-h | --help)
		cat <<'HELP'
usage: scripts/images.sh

Builds the images of both services for this machine, and tags each twice:
localhost/tandem/SERVICE:dev, and :dev-ID with the image's own id, which changes
with its contents and only then. It prints the second kind, one a line.

VERSION and REVISION are stamped into the images: by default what git says.
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

for service in service-a service-b; do
	image=localhost/tandem/$service
	echo "images: building $image $version" >&2
	# Without provenance an image is a plain one: with it, kind load may not find its contents (kind#3795).
	docker buildx build --load --provenance=false \
		--build-arg "VERSION=$version" --build-arg "REVISION=$revision" \
		--file "$service/Dockerfile" --tag "$image:dev" . >&2
	id=$(docker image inspect --format '{{.Id}}' "$image:dev")
	id=${id#sha256:}
	tagged=$image:dev-${id:0:12}
	docker tag "$image:dev" "$tagged"
	# The tags of earlier builds would only pile up.
	docker image ls --filter "reference=$image:dev-*" --format '{{.Repository}}:{{.Tag}}' | { grep -vxF "$tagged" || true; } |
		while read -r old; do docker image rm "$old" >/dev/null; done
	echo "$tagged"
done
