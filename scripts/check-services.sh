#!/usr/bin/env bash
# See --help.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

case ${1-} in
	'') ;;
	-h | --help)
		cat <<'HELP'
usage: scripts/check-services.sh

Compares each place that lists services with scripts/services.sh. Where they
differ, it names the file and what to add or remove:

  go.work                         every folder with a go.mod and a main.go
  docker-compose.yaml             a block that builds the service
  deploy/base/kustomization.yaml  the folder of the service
  deploy/base/SERVICE             Deployment, Service, ServiceAccount,
                                  PodDisruptionBudget, NetworkPolicy, settings

It also checks that no service imports another.
HELP
		exit
		;;
	*)
		echo "check-services: unknown argument $1; see --help" >&2
		exit 2
		;;
esac

failed=0
services=$(scripts/services.sh)
readonly base=deploy/base/kustomization.yaml

main() {
	local folder service listed
	for folder in */; do
		folder=${folder%/}
		if [[ -f $folder/go.mod && -f $folder/main.go ]] && ! is_service "$folder"; then report go.work "add ./$folder"; fi
	done
	for service in $services; do
		check_compose "$service"
		check_manifests "$service"
		check_imports "$service"
	done
	listed=$(sed -n 's/.*SERVICE: \([A-Za-z0-9_-]*\).*/\1/p' docker-compose.yaml)
	for service in $listed; do
		is_service "$service" || report docker-compose.yaml "remove $service: it is not a service of go.work"
	done
	listed=$(list_items resources $base)
	for service in $listed; do
		[[ $service == namespace ]] || is_service "$service" || report $base "remove $service: it is not a service of go.work"
	done
	exit $failed
}

is_service() { grep -qxF "$1" <<<"$services"; }

# list_items KEY FILE: prints the first word of each item of the list under the top-level KEY of a YAML file.
list_items() { awk -v key="$1:" '/^[^ #]/ { inside = ($1 == key) } inside && /^  - / { print $2 }' "$2"; }

report() { # report FILE WHAT-TO-CHANGE
	echo "check-services: $1: $2" >&2
	failed=1
}

check_compose() { # check_compose SERVICE
	local block
	block=$(awk -v service="  $1:" '/^ ? ?[^ #]/ { inside = ($0 == service) } inside' docker-compose.yaml)
	if [[ -z $block ]]; then
		report docker-compose.yaml "add the service $1"
	elif ! grep -qE "SERVICE: $1([ ,}]|\$)" <<<"$block"; then
		report docker-compose.yaml "add the build argument SERVICE: $1 to the service $1"
	fi
}

check_manifests() { # check_manifests SERVICE
	local service=$1 folder=deploy/base/$1 list=deploy/base/$1/kustomization.yaml listed file objects="" kind
	listed=$(list_items resources $base)
	grep -qxF "$service" <<<"$listed" || report $base "add the resource $service"
	if [[ ! -f $list ]]; then
		report "$list" "add this file and the manifests of $service, as for the other services"
		return
	fi
	# Only the files that kustomization.yaml lists are deployed.
	listed=$(list_items resources "$list")
	for file in $listed; do
		if [[ -f $folder/$file ]]; then
			objects+=$(awk '/^kind: / { kind = $2 } /^  name: / { print kind, $2 } / image: / { print $NF }' "$folder/$file")$'\n'
		else
			report "$folder/$file" "add this file, or remove it from $list"
		fi
	done
	for kind in Deployment Service ServiceAccount PodDisruptionBudget NetworkPolicy; do
		grep -qxF "$kind $service" <<<"$objects" || report "$list" "add a file with the $kind $service to resources"
	done
	grep -qxF "localhost/tandem/$service:dev" <<<"$objects" ||
		report "$folder" "set the image of the Deployment to localhost/tandem/$service:dev"
	grep -qE "^  - (\{ )?name: $service(,|\$)" "$list" ||
		report "$list" "add the ConfigMap $service to configMapGenerator"
}

check_imports() { # check_imports SERVICE
	local other module lines first
	for other in $services; do
		if [[ $other == "$1" ]]; then continue; fi
		module=$(sed -n 's/^module //p' "$other/go.mod")
		lines=$(find "$1" -name '*.go' -exec grep -nE "^(import)?[[:space:]]*([A-Za-z0-9_.]+ )?\"${module}[/\"]" /dev/null {} + || true)
		if [[ -n $lines ]]; then
			read -r first <<<"$lines"
			report "$first" "remove the import: services call each other over the network only"
		fi
	done
}

main
