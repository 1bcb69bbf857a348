#!/usr/bin/env bash
# See --help.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly n=300
# Another project and port than those of docker compose up, so that both can run at once.
export COMPOSE_PROJECT_NAME=tandem-test PORT=${PORT:-18080}

case ${1-} in
	'') ;;
	-h | --help)
		cat <<'HELP'
usage: scripts/compose-test.sh

Starts both services with docker compose, makes service-a call service-b 300
times over HTTP and 300 times over gRPC, and stops them. It fails unless all
calls succeed, both transports reach all three containers of service-b, and
over gRPC each container serves a third of the calls, within 25 %.

Needs docker compose, curl and jq. PORT is the port of service-a on this
machine, by default 18080.
HELP
		exit
		;;
	*)
		echo "compose-test: unknown argument $1; see --help" >&2
		exit 2
		;;
esac

down() {
	status=$?
	if ((status != 0)); then
		docker compose ps --all
		docker compose logs --tail 20
	fi >&2
	echo "compose-test: stopping" >&2
	docker compose down --timeout 5 >/dev/null 2>&1 || echo "compose-test: docker compose down failed" >&2
}
trap down EXIT

# spread VIA CONDITION: makes the calls over VIA and prints their result in one line. Fails unless the jq expression
# CONDITION is true, no call failed, and all three containers were reached.
spread() {
	local response
	response=$(curl --silent --show-error --fail --max-time 30 "http://localhost:$PORT/api/spread?via=$1&n=$n")
	jq --compact-output '{via, pods: [.pods[]], errors, p99: .latencyMs.p99}' <<<"$response"
	if ! jq --exit-status --argjson n $n "(.errors == {}) and (.pods | length == 3) and ($2)" >/dev/null <<<"$response"; then
		echo "compose-test: FAILED over $1: want no errors, three pods, and $2" >&2
		return 1
	fi
}

echo "compose-test: building and starting" >&2
docker compose up --build --detach --wait --wait-timeout 120 --quiet-pull
# Until all its connections are open, gRPC sends every call over the first: not part of the test.
curl --silent --show-error --fail --output /dev/null "http://localhost:$PORT/api/spread?via=grpc&n=30"
# HTTP picks an address for each connection, so the calls need not be spread evenly. gRPC's round_robin picks one for each
# call.
spread http true
# shellcheck disable=SC2016 # $n is jq's
spread grpc '[.pods[]] | min >= $n / 3 * 0.75 and max <= $n / 3 * 1.25'
echo "compose-test: passed"
