#!/usr/bin/env bash
# See --help.
# bash 3.2, which macOS has, does not end a $(…) at its first failure: run one command in each, and assign its output on
# a line of its own, so that its failure ends the script. A <(…) never reports a failure: do not use it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

cluster=${KIND_CLUSTER:-tandem}
# Always by name: the cluster of kubectl's current context may be another one.
kubectl() { command kubectl --context "kind-$cluster" "$@"; }
readonly ours=app.kubernetes.io/part-of=tandem

say() { echo "kind: $*" >&2; }
fail() {
	say "$*"
	exit 1
}

help() {
	cat <<'HELP'
usage: scripts/kind.sh up|deploy|status|logs|down

  up      make a cluster of three nodes, or find it made
  deploy  build the images, load them, apply OVERLAY, and wait until it runs;
          nothing is deleted: objects that only another overlay has stay until
          you delete them, or the cluster
  status  what runs where
  logs    follow the logs of all pods, or of SERVICE's
  down    delete the cluster

Environment, with defaults:
  KIND_CLUSTER    tandem  the cluster's name
  KIND_NODE_IMAGE         the nodes' image, which is the version of Kubernetes;
                          by default kind's own
  KIND_PORT       8080    where up puts service-a's page on this machine
  METRICS_SERVER          a manifest of metrics-server, file or URL, for up to
                          apply; kubectl top and autoscaling need one
  OVERLAY         kind    a folder of deploy/overlays
  SERVICE                 service-a or service-b, for logs
HELP
}

our_namespaces() { kubectl get namespaces --selector "$ours" --output 'jsonpath={.items[*].metadata.name}'; }
exists() {
	local clusters
	clusters=$(kind get clusters 2>&1) || fail "list the clusters: $clusters"
	grep -qxF "$cluster" <<<"$clusters"
}
need_cluster() { exists || fail "there is no cluster $cluster; make kind-up makes it"; }

up() {
	local port=${KIND_PORT:-8080} image=() stopped
	if exists; then
		say "cluster $cluster is there"
		stopped=$(docker ps --all --quiet --filter "label=io.x-k8s.kind.cluster=$cluster" --filter status=exited)
		# shellcheck disable=SC2086 # one word a container
		if [[ -n $stopped ]]; then docker start $stopped >/dev/null; fi # they stop with the machine
		kind export kubeconfig --name "$cluster" --quiet
	else
		say "making cluster $cluster; the first time, kind pulls the nodes' image"
		if [[ -n ${KIND_NODE_IMAGE-} ]]; then image=(--image "$KIND_NODE_IMAGE"); fi
		sed "s/hostPort: 8080/hostPort: $port/" deploy/kind/cluster.yaml |
			kind create cluster --name "$cluster" --config - --wait 120s ${image[@]+"${image[@]}"}
	fi
	say "waiting for nodes and DNS"
	kubectl wait --for=condition=Ready node --all --timeout=180s
	kubectl --namespace kube-system rollout status deployment/coredns --timeout=180s
	if [[ -n ${METRICS_SERVER-} ]]; then metrics_server; fi
	say "ready; next: make deploy"
}

metrics_server() {
	local arguments
	say "metrics-server"
	kubectl apply --filename "$METRICS_SERVER"
	arguments=$(kubectl --namespace kube-system get deployment metrics-server --output 'jsonpath={.spec.template.spec.containers[0].args}')
	# The certificates of kind's kubelets are signed by nobody.
	if [[ $arguments != *--kubelet-insecure-tls* ]]; then
		kubectl --namespace kube-system patch deployment metrics-server --type json \
			--patch '[{"op": "add", "path": "/spec/template/spec/containers/0/args/-", "value": "--kubelet-insecure-tls"}]'
	fi
	kubectl --namespace kube-system rollout status deployment/metrics-server --timeout=180s
}

load() { # load IMAGE...
	if kind load docker-image --name "$cluster" "$@"; then return; fi
	# Docker's containerd store can leave kind without an image's contents (kind#3795); an archive has them.
	say "loading them from an archive instead"
	archive=$(mktemp)
	trap 'rm -f "$archive"' EXIT
	docker save --output "$archive" "$@"
	kind load image-archive --name "$cluster" "$archive"
}

render() { # render OVERLAY IMAGE...: set manifests, with the images' tags in place of dev
	local overlay=$1 image folder
	shift
	mkdir -p out
	folder=$(mktemp -d out/deploy.XXXXXX)
	{
		echo "resources: [../../deploy/overlays/$overlay]"
		echo "images:"
		for image in "$@"; do echo "  - { name: ${image%:*}, newTag: ${image##*:} }"; done
	} >"$folder/kustomization.yaml"
	manifests=$(bin/kustomize build "$folder")
	rm -r "$folder"
}

# Where an autoscaler takes over, the manifest stops naming a number of replicas; without this the field would fall back
# to 1. Another field manager that names the current number keeps it (Kubernetes calls it a handover).
hand_over_replicas() { # hand_over_replicas MANIFESTS
	local namespace name replicas
	kubectl get --filename - --ignore-not-found --output \
		'jsonpath={range .items[?(@.kind=="Deployment")]}{.metadata.namespace} {.metadata.name} {.spec.replicas}{"\n"}{end}' <<<"$1" |
		while read -r namespace name replicas; do
			kubectl apply --server-side --force-conflicts --field-manager=tandem-handover --filename - >/dev/null <<MANIFEST
{"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"namespace": "$namespace", "name": "$name"}, "spec": {"replicas": $replicas}}
MANIFEST
		done
}

wait_for_rollouts() { # wait_for_rollouts MANIFESTS
	local deployments namespace name replicas deadline failed=0
	deployments=$(kubectl get --filename - --output 'jsonpath={range .items[?(@.kind=="Deployment")]}{.metadata.namespace} {.metadata.name} {.spec.replicas} {.spec.progressDeadlineSeconds}{"\n"}{end}' <<<"$1") ||
		fail "read the Deployments that were applied: kubectl get failed; its error is above"
	while read -r namespace name replicas deadline; do
		# A rollout that makes no progress ends by its own deadline. This limit is for a Deployment that was rolled out
		# before, whose progress Kubernetes no longer watches. Pods are replaced one after the other: a minute for each
		# is minReadySeconds (20 s), the startup probe's limit (30 s), and 10 s to schedule it.
		kubectl --namespace "$namespace" rollout status "deployment/$name" --timeout=$((deadline + replicas * 60))s </dev/null || failed=1
	done <<<"$deployments"
	return $failed
}

deploy() {
	local overlay=${OVERLAY:-kind} manifests images
	need_cluster
	[[ -d deploy/overlays/$overlay ]] || fail "there is no deploy/overlays/$overlay; there are: $(cd deploy/overlays && echo *)"
	images=$(scripts/images.sh)
	say "loading the images"
	# shellcheck disable=SC2086 # one word an image
	load $images
	# shellcheck disable=SC2086
	render "$overlay" $images
	say "applying overlays/$overlay"
	if grep -q '^kind: HorizontalPodAutoscaler' <<<"$manifests"; then hand_over_replicas "$manifests"; fi
	# The API server merges, and knows who set what; --force-conflicts: these files are right, not what was edited by hand.
	# No --prune: it would delete the ConfigMaps of earlier versions, which pods that still run and rollout undo need.
	kubectl apply --server-side --force-conflicts --field-manager=tandem --filename - <<<"$manifests"
	if ! wait_for_rollouts "$manifests"; then
		explain || true # what cannot be read is left out
		fail "it does not run; the pods, the last warnings, and the last log lines of containers that ended are above"
	fi
	look
}

explain() {
	local namespaces namespace name
	kubectl get pods --all-namespaces --selector "$ours" --output wide >&2
	namespaces=$(our_namespaces)
	for namespace in $namespaces; do
		kubectl --namespace "$namespace" get events --field-selector type=Warning --sort-by .lastTimestamp | tail -10 >&2
	done
	# Containers that ended by themselves, such as for a bad setting.
	kubectl get pods --all-namespaces --selector "$ours" --output \
		'jsonpath={range .items[?(@.status.containerStatuses[*].lastState.terminated)]}{.metadata.namespace} {.metadata.name}{"\n"}{end}' |
		while read -r namespace name; do
			say "pod $name ended and was started again; its last lines:"
			kubectl --namespace "$namespace" logs "$name" --previous --tail 5 </dev/null >&2 || true # it may be gone by now
		done
}

look() {
	local at settings service_b
	at=$(docker port "$cluster-control-plane" 30080/tcp)
	settings=$(kubectl --namespace tandem get deployment service-a --output 'jsonpath={.spec.template.spec.containers[0].envFrom[0].configMapRef.name}')
	service_b=$(kubectl --namespace tandem get configmap "$settings" --output 'jsonpath={.data.SERVICE_B_HTTP_URL}')
	cat <<LOOK

The page:    http://localhost:${at##*:}
The spread:  curl 'http://localhost:${at##*:}/api/spread?via=grpc&n=300'
From a pod:  kubectl --context kind-$cluster --namespace tandem exec deploy/service-a -- /service-a probe $service_b/health
More:        make status, make logs, make kind-down
LOOK
}

status() {
	need_cluster
	kubectl get nodes --label-columns topology.kubernetes.io/zone
	echo
	kubectl get pods --all-namespaces --selector "$ours" --sort-by .metadata.name --label-columns topology.kubernetes.io/zone --output wide
	echo
	kubectl get services,horizontalpodautoscalers,poddisruptionbudgets --all-namespaces --selector "$ours"
	look
}

logs() {
	local namespaces namespace selector=$ours${SERVICE:+,app.kubernetes.io/name=$SERVICE}
	need_cluster
	namespaces=$(our_namespaces)
	trap 'kill $(jobs -p) 2>/dev/null || true' EXIT
	for namespace in $namespaces; do
		kubectl --namespace "$namespace" logs --selector "$selector" --prefix --tail 20 --follow --max-log-requests 50 &
	done
	wait
}

down() {
	if exists; then
		kind delete cluster --name "$cluster"
	else
		say "there is no cluster $cluster"
	fi
}

case ${1-} in
	up | deploy | status | logs | down)
		(($# == 1)) || fail "$1 takes no arguments; see --help"
		for tool in docker kind kubectl; do
			type -P $tool >/dev/null || fail "$tool is not on PATH"
		done
		"$1"
		;;
	-h | --help) help ;;
	*)
		help >&2
		exit 2
		;;
esac
