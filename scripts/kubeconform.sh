#!/usr/bin/env bash
# See --help.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

case ${1-} in
	'') ;;
	-h | --help)
		cat <<'HELP'
usage: scripts/kubeconform.sh

Renders deploy/base, every overlay, and every component on the base, and checks
the result against deploy/schemas: unknown fields, wrong types and kinds that
have no schema there are errors. Images must name a tag that is not latest. The
environment of a Deployment must repeat its grace period and preStop delay.

Needs bin/kustomize and bin/kubeconform (make tools builds them); no cluster, no
network.
HELP
		exit
		;;
	*)
		echo "kubeconform: unknown argument $1; see --help" >&2
		exit 2
		;;
esac

mkdir -p out
out=$(mktemp -d out/kubeconform.XXXXXX) # in here, as kustomize takes relative paths only
trap 'rm -rf "$out"' EXIT

# grace_agrees FILE: fails for a Deployment whose TERMINATION_GRACE_PERIOD and
# PRE_STOP_DELAY are not what its fields say. The service checks at its start that
# it can stop in time, and sees the variables only. It relies on kustomize's output:
# block style, and name before value.
grace_agrees() {
	awk '
		function agree(variable, field, seconds) {
			if (env[variable] == seconds "s") return
			printf "kubeconform: Deployment %s: %s is %s, but %s is %s seconds\n", deployment, variable, env[variable], field, seconds
			bad = 1
		}
		function finish() {
			if (kind == "Deployment") {
				agree("TERMINATION_GRACE_PERIOD", "terminationGracePeriodSeconds", grace)
				agree("PRE_STOP_DELAY", "preStop.sleep", sleep)
			}
			kind = grace = sleep = ""
			split("", env)
		}
		/^---/ { finish() }
		/^kind:/ { kind = $2 }
		/^  name:/ { deployment = $2 }
		$1 == "-" && $2 == "name:" { name = $3 }
		$1 == "value:" { env[name] = $2 }
		$1 == "seconds:" { sleep = $2 }
		$1 == "terminationGracePeriodSeconds:" { grace = $2 }
		END { finish(); exit bad }
	' "$1" >&2
}

failed=0
check() { # check NAME FOLDER
	local rendered=$out/rendered.yaml untagged
	if ! bin/kustomize build "$2" >"$rendered"; then
		echo "kubeconform: $1 does not render" >&2
		failed=1
		return
	fi
	printf '%-40s' "$1"
	bin/kubeconform -strict -summary -schema-location 'deploy/schemas/{{.ResourceKind}}{{.KindSuffix}}.json' "$rendered" || failed=1
	grace_agrees "$rendered" || failed=1
	untagged=$(grep -E '^\s*(- )?image:' "$rendered" | grep -vE ':[^/:]+$|@sha256:[0-9a-f]{64}$' || true)
	untagged+=$(grep -E '^\s*(- )?image:.*:latest$' "$rendered" || true)
	if [[ -n $untagged ]]; then
		echo "kubeconform: $1: want a tag other than latest:" "$untagged" >&2
		failed=1
	fi
}

check base deploy/base
for overlay in deploy/overlays/*/; do
	check "overlays/$(basename "$overlay")" "$overlay"
done
for component in deploy/components/*/; do
	name=$(basename "$component")
	mkdir "$out/$name"
	cat >"$out/$name/kustomization.yaml" <<KUSTOMIZATION
resources: [../../../deploy/base]
components: [../../../deploy/components/$name]
KUSTOMIZATION
	check "components/$name on the base" "$out/$name"
done
exit $failed
