#!/usr/bin/env bash
# See --help.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

case ${1-} in
	'') ;;
	-h | --help)
		cat <<'HELP'
usage: scripts/kubeconform.sh

Renders deploy/base, every overlay, and every component on the base. Checks that

  - each object conforms to its schema in deploy/schemas. Unknown fields and
    kinds without a schema are errors
  - each image has a tag other than latest, or a digest
  - each Deployment repeats its grace period and preStop delay in its
    environment
  - the line namespace of deploy/base/kustomization.yaml is the only one that
    sets the namespace: with another name there, no object has the old name

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
	render "$work/deploy"
	for folder in "$work"/deploy/{base,overlays/*,base-with/*}; do
		name=${folder#"$work"/deploy/}
		check_manifests "$name" "$folder/rendered.yaml"
	done

	namespace=$(sed -n 's/^namespace: \([^ ]*\).*/\1/p' deploy/base/kustomization.yaml)
	render "$work/renamed" another-name
	for folder in "$work"/renamed/{base,overlays/*,base-with/*}; do
		name=${folder#"$work"/renamed/}
		check_renamed "$name" "$folder/rendered.yaml" "$namespace"
	done
	exit $failed
}

# render COPY [NAMESPACE]: copies the manifests to the folder COPY, adds a folder base-with/NAME for each component on the
# base, changes the namespace, and renders each folder to its rendered.yaml.
render() {
	local component name folder
	mkdir -p "$1/base-with"
	cp -R deploy/base deploy/components deploy/overlays "$1"
	if [[ -n ${2-} ]]; then sed "s/^namespace: .*/namespace: $2/" deploy/base/kustomization.yaml >"$1/base/kustomization.yaml"; fi
	for component in deploy/components/*/; do
		name=$(basename "$component")
		mkdir "$1/base-with/$name"
		printf 'resources: [../../base]\ncomponents: [../../components/%s]\n' "$name" >"$1/base-with/$name/kustomization.yaml"
	done
	for folder in "$1"/{base,overlays/*,base-with/*}; do
		bin/kustomize build "$folder" >"$folder/rendered.yaml" || report "${folder#"$1/"} does not render${2:+ with namespace: $2}; the error is above"
	done
}

check_manifests() { # check_manifests NAME FILE
	local images
	printf '%-40s' "$1"
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
# manifests. The label part-of and the name of a PodMonitor may have the same value.
check_renamed() {
	local left
	left=$(awk -v old="$3" '
		/^kind:/ { kind = $2 }
		$NF == "set-by-kustomize" { print kind ":" $0 }
		$NF == old && !/app.kubernetes.io\/part-of:/ && !(kind == "PodMonitor" && /^  name:/) { print kind ":" $0 }
	' "$2")
	if [[ -n $left ]]; then report "$1: deploy/base/kustomization.yaml does not set this namespace: $left"; fi
}

main
