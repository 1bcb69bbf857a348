#!/usr/bin/env bash
# See --help.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly n=300
# A project and a port of its own: a pair that somebody runs by hand is left alone.
export COMPOSE_PROJECT_NAME=tandem-test PORT=${PORT:-18080}

case ${1-} in
	'') ;;
	-h | --help)
		cat <<'HELP'
usage: scripts/compose-test.sh

Brings the pair up with docker compose, has service-a ask service-b 300 times
over HTTP and 300 times over gRPC, and takes it down again. It fails unless no
call failed, both transports reached all three service-b, and gRPC gave each
its third, give or take 25 %.

Needs docker compose and jq. PORT (18080) is where service-a is published.
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
	echo "compose-test: taking it down" >&2
	docker compose down --timeout 5 >/dev/null 2>&1 || echo "compose-test: docker compose down failed" >&2
}
trap down EXIT

spread() { # spread VIA JQ-CONDITION: one line of what happened; fails unless the condition holds
	local answer
	answer=$(curl --silent --show-error --fail --max-time 30 "http://localhost:$PORT/api/spread?via=$1&n=$n")
	jq --compact-output '{via, pods: [.pods[]], errors, p99: .latencyMs.p99}' <<<"$answer"
	if ! jq --exit-status --argjson n $n "(.errors == {}) and (.pods | length == 3) and ($2)" >/dev/null <<<"$answer"; then
		echo "compose-test: FAILED over $1: want no errors, three pods, and $2" >&2
		return 1
	fi
}

echo "compose-test: building and starting" >&2
docker compose up --build --detach --wait --wait-timeout 120 --quiet-pull
# Connections open one after another, and the first gets what comes until the others have: not what is tested.
curl --silent --show-error --fail --output /dev/null "http://localhost:$PORT/api/spread?via=grpc&n=30"
# HTTP picks a pod a connection, so it promises no even spread; round_robin of gRPC picks one a call, and does.
spread http true
# shellcheck disable=SC2016 # $n is jq's
spread grpc '[.pods[]] | min >= $n / 3 * 0.75 and max <= $n / 3 * 1.25'
echo "compose-test: passed"
