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

	azmonitoring.coreos.com/v1/PodMonitor

	monitoring.coreos.com/v1/PodMonitor
	monitoring.coreos.com/v1/PrometheusRule

	gateway.networking.k8s.io/v1/Gateway
	gateway.networking.k8s.io/v1/GRPCRoute
	gateway.networking.k8s.io/v1/HTTPRoute

	networking.istio.io/v1/DestinationRule
	networking.istio.io/v1/Sidecar
	networking.istio.io/v1/VirtualService
	security.istio.io/v1/AuthorizationPolicy
	security.istio.io/v1/PeerAuthentication

	policy.linkerd.io/v1alpha1/AuthorizationPolicy
	policy.linkerd.io/v1alpha1/MeshTLSAuthentication
	policy.linkerd.io/v1beta3/Server
)

case ${1-} in
	'') ;;
	-h | --help)
		cat <<HELP
usage: scripts/schemas.sh

Regenerates deploy/schemas: a JSON Schema for each kind that deploy/ uses, with
which kubeconform checks manifests without a cluster or network. The sources are
the OpenAPI description in the module k8s.io/kubernetes ($kubernetes) and the files
that scripts/crds.sh lists.

Run it after you change a version or the kinds in one of these two scripts, or a
CRD in deploy/crds, and commit the result. Needs Go.
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
out=$PWD/deploy/schemas
crds=$(scripts/crds.sh)
cd scripts/tools/schemas
# shellcheck disable=SC2086 # one word for each file
GOWORK=off "$GO" run . "$module/api/openapi-spec/swagger.json" "$out" $crds "${kinds[@]}" # never empty
cd "$out"
files=(*.json)
echo "schemas: wrote ${#files[@]} files to deploy/schemas" >&2
