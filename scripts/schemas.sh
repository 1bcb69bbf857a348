#!/usr/bin/env bash
# See --help.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

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

Writes deploy/schemas anew: a JSON Schema for each kind that deploy/ uses, which
kubeconform then checks manifests against without a cluster and without a
network. They are made from the OpenAPI description in Kubernetes' own module
($kubernetes), and from the CRDs in deploy/crds.

Run it after a new version or kind has been put into this script, or a CRD into
deploy/crds, and commit what it wrote. Needs Go.
HELP
		exit
		;;
	*)
		echo "schemas: unknown argument $1; see --help" >&2
		exit 2
		;;
esac

echo "schemas: reading Kubernetes $kubernetes" >&2
module=$(GOWORK=off GOFLAGS=-mod=mod go mod download -json "k8s.io/kubernetes@$kubernetes" | sed -n 's/^\t"Dir": "\(.*\)",$/\1/p')
mkdir -p deploy/schemas
rm -f deploy/schemas/*.json
out=$PWD/deploy/schemas crds=("$PWD"/deploy/crds/*.yaml)
(cd scripts/tools/schemas && GOWORK=off go run . "$module/api/openapi-spec/swagger.json" "$out" "${crds[@]}" "${kinds[@]}")
echo "schemas: $(find deploy/schemas -name '*.json' | wc -l) files in deploy/schemas" >&2
