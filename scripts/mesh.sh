#!/usr/bin/env bash
# See --help.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
name=mesh
. scripts/cluster.sh

GO=${GO:-go}
file=${ISTIO_FILE:-deploy/kind/istio.yaml}
readonly istio=1.31.0

help() {
	cat <<HELP
usage: scripts/mesh.sh gateway-crds|istio-up

  gateway-crds  install the custom resources of Gateway API
  istio-up      install these and Istio $istio, which overlays/kind-istio needs,
                and wait until both work

Both act on the kind cluster, and may be repeated. Both need kubectl and Go,
which downloads the module sigs.k8s.io/gateway-api. istio-up also needs istioctl,
and kind if ISTIO_IMAGES is set.

Environment, with defaults:
  KIND_CLUSTER  tandem                  name of the cluster
  ISTIO_FILE    deploy/kind/istio.yaml  what istioctl installs
  ISTIO_IMAGES                          images to load into the cluster from
                                        Docker; by default the nodes pull them
HELP
}

gateway_crds() {
	local crds files=() file
	say "installing the custom resources of Gateway API"
	crds=$(scripts/crds.sh gateway-api)
	while read -r file; do files+=(--filename "$file"); done <<<"$crds"
	kubectl apply --server-side --force-conflicts "${files[@]}" # never empty
	kubectl wait --for=condition=Established --timeout=60s "${files[@]}" # never empty
}

istio_up() {
	local version
	type -P istioctl >/dev/null ||
		fail "istioctl is not on PATH; install $istio: curl -L https://istio.io/downloadIstio | ISTIO_VERSION=$istio sh -"
	version=$(istioctl version --remote=false --short)
	version=${version##* } # after "client version:"
	if [[ $version != "$istio" ]]; then say "istioctl is $version; tested with $istio"; fi
	gateway_crds # first: istiod looks for them when it starts
	if [[ -n ${ISTIO_IMAGES-} ]]; then
		need_tools kind
		say "loading the images of Istio"
		# shellcheck disable=SC2086 # one word for each image
		kind load docker-image --name "$cluster" $ISTIO_IMAGES
	fi
	say "installing Istio from $file"
	istioctl install --context "kind-$cluster" --skip-confirmation --filename "$file"
	kubectl --namespace istio-system rollout status deployment/istiod --timeout=180s
	# A pod that starts on a node before the plugin does gets no sidecar rules.
	kubectl --namespace istio-system rollout status daemonset/istio-cni-node --timeout=180s
	say "waiting for the GatewayClass istio"
	kubectl wait --for=create --for=condition=Accepted --timeout=60s gatewayclass/istio
	say "ready; next: make deploy OVERLAY=kind-istio"
}

case ${1-} in
	gateway-crds | istio-up)
		(($# == 1)) || fail "$1 takes no arguments; see --help"
		need_tools kubectl "$GO"
		kubectl get nodes >/dev/null || fail "there is no cluster $cluster, or it does not respond; make kind-up creates it"
		"${1//-/_}"
		;;
	-h | --help) help ;;
	*)
		help >&2
		exit 2
		;;
esac
