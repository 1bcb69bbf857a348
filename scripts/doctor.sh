#!/usr/bin/env bash
# See --help.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

case ${1-} in
	'') ;;
	-h | --help)
		cat <<'HELP'
usage: scripts/doctor.sh

Lists the tools that make's verbs need: whether each is there, which version,
and what needs it. It fails if go, make or git is missing or too old; the others
are needed for some verbs only. Tools in scripts/tools are built when needed.
HELP
		exit
		;;
	*)
		echo "doctor: unknown argument $1; see --help" >&2
		exit 2
		;;
esac

go=${GO:-go}
status=0

# number VERSION: its first two numbers as one that can be compared, 1.26.8 as 1026.
number() { echo "$1" | awk -F . '{ printf "%d", $1 * 1000 + $2 }'; }

# tool LEVEL NAME MINIMUM NEEDED-FOR HINT COMMAND...: runs COMMAND for the version. LEVEL is required or optional.
tool() {
	local level=$1 name=$2 minimum=$3 needed=$4 hint=$5 output version state=ok
	shift 5
	# A program may be there and still fail, such as docker without a daemon.
	if output=$("$@" 2>/dev/null); then
		version=$(echo "$output" | grep -oE '[0-9]+(\.[0-9]+)+' | head -1)
		if [[ -n $minimum && -n $version ]] && (($(number "$version") < $(number "$minimum"))); then
			state="too old: $minimum or later is needed"
		fi
	else
		version=-
		state="missing: $hint"
	fi
	if [[ $level == required && $state != ok ]]; then status=1; fi
	printf '%-15s %-10s %-52s %s\n' "$name" "${version:--}" "$needed" "$state"
}

# compiler prints the version of the C compiler that Go would use.
# shellcheck disable=SC2317 # tool calls it
compiler() {
	local cc
	cc=$("$go" env CC) && "$cc" --version
}

# browser prints the version of the browser that the tests of the page use.
# shellcheck disable=SC2317 # tool calls it
browser() {
	local name
	for name in chromium chromium-browser google-chrome; do
		if command -v "$name" >/dev/null; then
			"$name" --version
			return
		fi
	done
	return 1
}

wanted=$(sed -n 's/^go //p' go.work)
printf '%-15s %-10s %-52s %s\n' tool version 'needed for' state
tool required go "$wanted" "everything" "go.dev/dl" "$go" version
tool required make '' "everything" "apt-get install make, or xcode-select --install" make --version
tool required git '' "build, lint" "apt-get install git, or xcode-select --install" git --version
tool optional "C compiler" '' "test: the race detector" "apt-get install gcc libc6-dev, or xcode-select --install" compiler
tool optional shellcheck '' "lint" "apt-get install shellcheck, or brew install shellcheck" shellcheck --version
tool optional Chromium '' "test: the page; screenshots" "apt-get install chromium, or install Google Chrome" browser
tool optional promtool '' "lint: the tests of the alert rules" "apt-get install prometheus, or brew install prometheus" promtool --version
tool optional curl '' "compose-test, aks-up, aks-deploy" "apt-get install curl" curl --version
tool optional jq '' "compose-test" "apt-get install jq, or brew install jq" jq --version
tool optional docker 23.0 "images, compose-test, kind-up" "docs.docker.com/get-docker; is the daemon running?" docker version --format '{{.Server.Version}}'
tool optional "docker buildx" '' "images" "apt-get install docker-buildx-plugin" docker buildx version
tool optional "docker compose" '' "compose-test" "apt-get install docker-compose-plugin" docker compose version
tool optional kind 0.33 "kind-up, deploy, e2e, chaos" "kind.sigs.k8s.io" kind version
tool optional kubectl '' "deploy, status, logs, e2e, chaos, aks-up, aks-deploy" "kubernetes.io/docs/tasks/tools" kubectl version --client
tool optional istioctl 1.31 "istio-up" "istio.io/latest/docs/setup/getting-started" istioctl version --remote=false
tool optional az 2.86 "aks-up, aks-deploy, aks-down, aks-test" "aka.ms/azure-cli" az version
tool optional kubelogin '' "aks-up, aks-deploy" "az aks install-cli" kubelogin --version
exit $status
