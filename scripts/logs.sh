#!/usr/bin/env bash
# See --help.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

name=logs
. scripts/cluster.sh
trace=${TRACE-}
selector=app.kubernetes.io/part-of=tandem${SERVICE:+,app.kubernetes.io/name=$SERVICE}

help() {
	cat <<'HELP'
usage: scripts/logs.sh

Follows the logs of all pods of the services: first the last 20 lines of each,
then every line, also of pods that start later and of containers that restart.
Ctrl-C ends it.

Environment, with defaults:
  KIND_CLUSTER  tandem  name of the cluster
  SERVICE               follow this service only; scripts/services.sh lists them
  TRACE                 mark the lines of this trace: the trace id that a
                        response shows, or its first 8 or more characters
  NO_COLOR              any value turns colors off
HELP
}

# One line for each pod: namespace, name, and the id of its container, which is another one after a restart.
list_pods() {
	kubectl get pods --all-namespaces --selector "$selector" --output \
		'jsonpath={range .items[*]}{.metadata.namespace} {.metadata.name} {.status.containerStatuses[0].containerID}{"\n"}{end}'
}

main() {
	local pods services
	services=$(scripts/services.sh)
	if [[ -n ${SERVICE-} ]]; then
		grep -qxF "$SERVICE" <<<"$services" || fail "there is no service $SERVICE; scripts/services.sh lists them"
	fi
	if [[ -n $trace ]]; then
		[[ $trace =~ ^[0-9a-f]{8,32}$ ]] || fail "TRACE=\"$trace\": want a trace id, or its first 8 or more characters"
	fi
	need_tools kubectl
	pods=$(list_pods) || fail "list the pods of cluster $cluster; make kind-up deploy creates it"
	[[ -n $pods ]] || say "there are no pods yet; make deploy creates them"

	trap 'kill $(jobs -p) 2>/dev/null || true' EXIT
	trap 'exit 143' TERM
	if [[ -n $trace ]]; then exec > >(mark); fi
	follow "$pods"
}

# follow PODS: follows each container once. PODS is the first list of list_pods; later ones may fail, as while the API server
# restarts.
follow() {
	local pods=$1 lines=20 followed=' ' namespace pod container
	while :; do
		while read -r namespace pod container; do
			if [[ -z $container || $followed == *" $container "* ]]; then continue; fi
			followed+="$container "
			# exec: the trap must end kubectl itself, and not a shell that waits for it.
			(exec kubectl --context "kind-$cluster" --namespace "$namespace" logs "$pod" --prefix --tail "$lines" --follow </dev/null) &
		done <<<"$pods"
		lines=-1 # all: the container has just started
		sleep 2
		pods=$(list_pods 2>/dev/null) || true
	done
}

# mark: copies its input, and marks the lines of the trace.
mark() {
	local line on='' off=''
	if [[ -t 1 && -z ${NO_COLOR-} && ${TERM-} != dumb ]]; then on=$'\033[33m' off=$'\033[0m'; fi
	while IFS= read -r line; do
		if [[ $line == *"$trace"* ]]; then
			printf '%s> %s%s\n' "$on" "$line" "$off"
		else
			printf '  %s\n' "$line"
		fi
	done
}

case ${1-} in
	'') main ;;
	-h | --help) help ;;
	*)
		echo "logs: unknown argument $1; see --help" >&2
		exit 2
		;;
esac
