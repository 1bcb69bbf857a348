#!/usr/bin/env bash
# See --help.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

GO=${GO:-go}
readonly kubernetes=v1.36.3
readonly kinds=(
	apps/v1/Deployment
	autoscaling/v2/HorizontalPodAutoscaler
	core/v1/ConfigMap
	core/v1/Namespace
	core/v1/Service
	core/v1/ServiceAccount
	networking.k8s.io/v1/NetworkPolicy
	policy/v1/PodDisruptionBudget
)

case ${1-} in
	'') ;;
	-h | --help)
		cat <<HELP
usage: scripts/schemas.sh

Regenerates deploy/schemas: a JSON Schema for each kind that deploy/ uses, with
which kubeconform checks manifests without a cluster or network. The sources are
the OpenAPI description in the module k8s.io/kubernetes ($kubernetes) and the CRDs
in deploy/crds.

Run it after you change the version or the kinds in this script, or a CRD in
deploy/crds, and commit the result. Needs Go.
HELP
		exit
		;;
	*)
		echo "schemas: unknown argument $1; see --help" >&2
		exit 2
		;;
esac

echo "schemas: reading Kubernetes $kubernetes" >&2
module=$(GOWORK=off GOFLAGS=-mod=mod "$GO" mod download -json "k8s.io/kubernetes@$kubernetes" |
	sed -n 's/^[[:space:]]*"Dir": "\(.*\)",$/\1/p')
mkdir -p deploy/schemas
rm -f deploy/schemas/*.json
out=$PWD/deploy/schemas crds=("$PWD"/deploy/crds/*.yaml)
cd scripts/tools/schemas
GOWORK=off "$GO" run . "$module/api/openapi-spec/swagger.json" "$out" "${crds[@]}" "${kinds[@]}" # never empty
cd "$out"
files=(*.json)
echo "schemas: wrote ${#files[@]} files to deploy/schemas" >&2
