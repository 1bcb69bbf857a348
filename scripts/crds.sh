#!/usr/bin/env bash
# See --help.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

GO=${GO:-go}
readonly gateway_api=sigs.k8s.io/gateway-api@v1.5.0 # has what AKS installs on Kubernetes 1.36; 1.7 needs a newer Go
readonly istio=istio.io/api@v1.31.1
readonly prometheus=github.com/prometheus-operator/prometheus-operator@v0.85.0

help() {
	cat <<HELP
usage: scripts/crds.sh [deploy|gateway-api|istio|prometheus]...

Prints the paths of the files with the CustomResourceDefinitions that overlays
and components need, one a line; without an argument, all of them. Needs Go,
which downloads the modules if they are not in its cache.

  deploy       deploy/crds: Azure's PodMonitor and the policies of Linkerd
  gateway-api  the module $gateway_api
  istio        the module $istio
  prometheus   PodMonitor and PrometheusRule of the module $prometheus
HELP
}

main() {
	local name
	if (($# == 0)); then set -- deploy gateway-api istio prometheus; fi
	for name in "$@"; do
		case $name in
			-h | --help) help && return ;;
			deploy) print "$PWD/deploy/crds" ;;
			gateway-api) print_from $gateway_api config/crd/standard ;;
			istio) print_from $istio kubernetes ;;
			prometheus) print_from $prometheus example/prometheus-operator-crd | grep -E '_(podmonitors|prometheusrules)\.yaml$' ;;
			*)
				echo "crds: unknown argument $name; see --help" >&2
				return 2
				;;
		esac
	done
}

print_from() { # print_from MODULE FOLDER
	local module
	module=$(GOWORK=off GOFLAGS=-mod=mod "$GO" mod download -json "$1" | sed -n 's/^[[:space:]]*"Dir": "\(.*\)",$/\1/p')
	print "$module/$2"
}

print() { grep -l '^kind: CustomResourceDefinition$' "$1"/*.yaml; } # print FOLDER

main "$@"
