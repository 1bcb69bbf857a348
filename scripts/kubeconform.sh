#!/usr/bin/env bash
# See --help.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Components that cannot be used together. All other pairs must render and be valid.
readonly conflicts=(
	istio+linkerd
	gateway+load-balancer # each sets who may connect to service-a
	istio+cross-namespace # without istio/cross-namespace, service-b would be outside the mesh
	istio+load-balancer   # its clients have no certificates, and the mesh resets their connections
)
# Combinations of more than two components.
readonly combinations=(
	"faults azure-monitor prometheus tracing autoscaling entra workload-identity linkerd load-balancer load-balancer/internal cross-namespace"
	"gateway gateway/tls"
	"istio gateway gateway/tls gateway/grpc gateway/grpc/istio"
	"azure-monitor autoscaling workload-identity gateway gateway/tls gateway/aks cross-namespace"
	"faults azure-monitor prometheus tracing autoscaling entra workload-identity istio gateway gateway/tls cross-namespace istio/cross-namespace"
)

case ${1-} in
	'') ;;
	--render) [[ -d ${2-} ]] || {
		echo "kubeconform: --render: want an existing folder, got \"${2-}\"" >&2
		exit 2
	} ;;
	-h | --help)
		cat <<'HELP'
usage: scripts/kubeconform.sh [--render FOLDER]

Renders deploy/base, every overlay, deploy/azure, and on the base every component,
every pair of components, and the combinations listed in this script. Checks that

  - each object conforms to its schema in deploy/schemas. Unknown fields and
    kinds without a schema are errors
  - each image has a tag other than latest, or a digest
  - each Deployment repeats its grace period and preStop delay in its
    environment
  - the line namespace of deploy/base/kustomization.yaml is the only one that
    sets the namespace: with another name there, no object has the old name

With --render it checks nothing, and leaves the manifests in
FOLDER/{base,overlays/NAME,base-with/NAMES}/rendered.yaml. FOLDER is an absolute
path.

Needs bin/kustomize and bin/kubeconform, which make lint-deploy builds; no
cluster and no network.
HELP
		exit
		;;
	*)
		echo "kubeconform: unknown argument $1; see --help" >&2
		exit 2
		;;
esac

work=$(mktemp -d "${TMPDIR:-/tmp}/kubeconform.XXXXXX")
trap 'rm -rf "$work"' EXIT
failed=0
report() { # report TEXT...
	echo "kubeconform: $*" >&2
	failed=1
}

main() {
	local namespace folder name
	list_sets
	if [[ ${1-} == --render ]]; then
		render "$2"
		exit $failed
	fi
	render "$work/deploy"
	for folder in "$work"/deploy/{base,overlays/*,base-with/*}; do
		name=${folder#"$work"/deploy/}
		check_manifests "$name" "$folder/rendered.yaml"
	done
	bin/kustomize build deploy/azure/container-insights >"$work/container-insights.yaml" || report "deploy/azure/container-insights does not render"
	check_manifests azure/container-insights "$work/container-insights.yaml"

	namespace=$(sed -n 's/^namespace: \([^ ]*\).*/\1/p' deploy/base/kustomization.yaml)
	render "$work/renamed" another-name
	for folder in "$work"/renamed/{base,overlays/*,base-with/*}; do
		name=${folder#"$work"/renamed/}
		check_renamed "$name" "$folder/rendered.yaml" "$namespace"
	done
	exit $failed
}

# render COPY [NAMESPACE]: copies the manifests to the folder COPY, adds a folder base-with/NAMES for components on the
# base, changes the namespace, and renders each folder to its rendered.yaml.
render() {
	local names folder separator=', ../../components/'
	mkdir -p "$1/base-with"
	cp -R deploy/base deploy/components deploy/overlays "$1"
	if [[ -n ${2-} ]]; then sed "s/^namespace: .*/namespace: $2/" deploy/base/kustomization.yaml >"$1/base/kustomization.yaml"; fi
	for names in "${sets[@]}"; do # never empty
		folder=${names//\//-}
		folder=$1/base-with/${folder// /+}
		mkdir "$folder"
		printf 'resources: [../../base]\ncomponents: [../../components/%s]\n' "${names// /$separator}" >"$folder/kustomization.yaml"
	done
	for folder in "$1"/{base,overlays/*,base-with/*}; do
		bin/kustomize build "$folder" >"$folder/rendered.yaml" || report "${folder#"$1/"} does not render${2:+ with namespace: $2}; the error is above"
	done
}

# list_sets: fills the array sets with each component, each pair without a conflict, and the combinations. A set is the names
# with a space between.
list_sets() {
	local names=() folder first second i j
	for folder in deploy/components/*/; do
		if [[ $folder != */cross-namespace/ ]]; then names+=("$(basename "$folder")"); fi
	done
	names+=(cross-namespace) # last, because it moves what the components before it add
	sets=("${combinations[@]}") # never empty
	for ((i = 0; i < ${#names[@]}; i++)); do
		first=${names[i]}
		sets+=("$first")
		for ((j = i + 1; j < ${#names[@]}; j++)); do
			second=${names[j]}
			if [[ " ${conflicts[*]} " != *" $first+$second "* ]]; then sets+=("$first $second"); fi # never empty
		done
	done
}

check_manifests() { # check_manifests NAME FILE
	local images
	printf '%-45s ' "$1"
	bin/kubeconform -strict -summary -schema-location 'deploy/schemas/{{.ResourceKind}}{{.KindSuffix}}.json' "$2" || failed=1
	check_stop_times "$2" || failed=1
	images=$(grep -E '^[[:space:]]*(- )?image:' "$2" | grep -vE ':[^/:]+$|@sha256:[0-9a-f]{64}$' || true)
	images+=$(grep -E '^[[:space:]]*(- )?image:.*:latest$' "$2" || true)
	if [[ -n $images ]]; then report "$1: want a tag other than latest:" "$images"; fi
}

# check_stop_times FILE: fails for a Deployment whose TERMINATION_GRACE_PERIOD and PRE_STOP_DELAY differ from its fields.
# The service sees only the variables, and checks with them that it can stop in time. This relies on kustomize's output:
# block style, and name before value.
check_stop_times() {
	awk '
		function compare(variable, field, seconds) {
			if (env[variable] == seconds "s") return
			printf "kubeconform: Deployment %s: %s is %s, but %s is %s seconds\n", deployment, variable, env[variable], field, seconds
			bad = 1
		}
		function finish() {
			if (kind == "Deployment") {
				compare("TERMINATION_GRACE_PERIOD", "terminationGracePeriodSeconds", grace)
				compare("PRE_STOP_DELAY", "preStop.sleep", sleep)
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

# check_renamed NAME FILE NAMESPACE: reports the lines of FILE whose value is still NAMESPACE, or the placeholder of the
# manifests. The label part-of, and the names of a PodMonitor and of rules, may have the same value.
check_renamed() {
	local left
	left=$(awk -v old="$3" '
		/^kind:/ { kind = $2 }
		# An identity of Istio is NAMESPACE/SERVICEACCOUNT, the subject of a token system:serviceaccount:NAMESPACE:SERVICEACCOUNT.
		{ value = $NF; sub(/\/.*/, "", value); sub(/^system:serviceaccount:/, "", value); sub(/:.*/, "", value) }
		value == "set-by-kustomize" { print kind ":" $0 }
		value == old && !/app.kubernetes.io\/part-of:/ && !(kind ~ /^(PodMonitor|PrometheusRule)$/ && / name:/) { print kind ":" $0 }
	' "$2")
	if [[ -n $left ]]; then report "$1: deploy/base/kustomization.yaml does not set this namespace: $left"; fi
}

main "$@"
