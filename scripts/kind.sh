#!/usr/bin/env bash
# See --help.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
name=kind
. scripts/cluster.sh

readonly part_of=app.kubernetes.io/part-of=tandem

help() {
	cat <<'HELP'
usage: scripts/kind.sh up|deploy|status|down

  up      create a cluster of three nodes, or start one that exists
  deploy  build and load the images, apply OVERLAY, and wait for the rollouts.
          Nothing is deleted: objects of another overlay stay until you delete
          them or the cluster
  status  show nodes, pods and Services
  down    delete the cluster

Environment, with defaults:
  KIND_CLUSTER    tandem  name of the cluster
  KIND_NODE_IMAGE         image of the nodes, which sets the version of
                          Kubernetes; by default kind's own
  KIND_PORT       8080    port of service-a's page on this machine, for up
  METRICS_SERVER          manifest of metrics-server, a file or URL, for up to
                          apply; kubectl top and autoscaling need it
  OVERLAY         kind    a folder of deploy/overlays, for deploy
HELP
}

exists() {
	local clusters
	clusters=$(kind get clusters 2>&1) || fail "list the clusters: $clusters"
	grep -qxF "$cluster" <<<"$clusters"
}
need_cluster() { exists || fail "there is no cluster $cluster; make kind-up creates it"; }

up() {
	local port=${KIND_PORT:-8080} image=() stopped
	if exists; then
		say "cluster $cluster exists"
		stopped=$(docker ps --all --quiet --filter "label=io.x-k8s.kind.cluster=$cluster" --filter status=exited)
		# The nodes stop when the machine does.
		# shellcheck disable=SC2086 # one word for each container
		if [[ -n $stopped ]]; then docker start $stopped >/dev/null; fi
		kind export kubeconfig --name "$cluster" --quiet
	else
		say "creating cluster $cluster; the first time, kind pulls the image of the nodes"
		if [[ -n ${KIND_NODE_IMAGE-} ]]; then image=(--image "$KIND_NODE_IMAGE"); fi
		sed "s/hostPort: 8080/hostPort: $port/" deploy/kind/cluster.yaml |
			kind create cluster --name "$cluster" --config - --wait 120s ${image[@]+"${image[@]}"}
	fi
	say "waiting for nodes and DNS"
	kubectl wait --for=condition=Ready node --all --timeout=180s
	kubectl --namespace kube-system rollout status deployment/coredns --timeout=180s
	if [[ -n ${METRICS_SERVER-} ]]; then apply_metrics_server; fi
	say "ready; next: make deploy"
}

apply_metrics_server() {
	local arguments
	say "applying metrics-server"
	kubectl apply --filename "$METRICS_SERVER"
	arguments=$(kubectl --namespace kube-system get deployment metrics-server --output 'jsonpath={.spec.template.spec.containers[0].args}')
	# The certificates of kind's kubelets are self-signed.
	if [[ $arguments != *--kubelet-insecure-tls* ]]; then
		kubectl --namespace kube-system patch deployment metrics-server --type json \
			--patch '[{"op": "add", "path": "/spec/template/spec/containers/0/args/-", "value": "--kubelet-insecure-tls"}]'
	fi
	kubectl --namespace kube-system rollout status deployment/metrics-server --timeout=180s
}

deploy() {
	local overlay=${OVERLAY:-kind} manifests images
	need_cluster
	[[ -d deploy/overlays/$overlay ]] || fail "there is no deploy/overlays/$overlay; there are: $(cd deploy/overlays && echo *)"
	images=$(scripts/images.sh)
	say "loading the images"
	# shellcheck disable=SC2086 # one word for each image
	load $images
	# shellcheck disable=SC2086
	render "$overlay" $images
	check_gateway "$manifests"
	say "applying overlays/$overlay"
	scripts/rollout.sh "kind-$cluster" <<<"$manifests"
	print_addresses
}

# check_gateway MANIFESTS: a Gateway of overlays/kind-istio keeps the NodePort that other overlays need.
check_gateway() {
	local gateways
	if grep -q '^kind: Gateway$' <<<"$1"; then return; fi
	gateways=$(kubectl get gateways --selector "$part_of" --all-namespaces --output name 2>/dev/null) || return 0 # no such kind
	if [[ -n $gateways ]]; then
		fail "the cluster is in a mesh, behind a gateway; for this overlay, first run make kind-down kind-up"
	fi
}

load() { # load IMAGE...
	if kind load docker-image --name "$cluster" "$@"; then return; fi
	# From Docker's containerd image store, kind may get an image without its contents (kind#3795). An archive has them.
	say "loading the images from an archive instead"
	mkdir -p out
	archive=$(mktemp out/images.XXXXXX)
	trap 'rm -f "$archive"' EXIT
	docker save --output "$archive" "$@"
	kind load image-archive --name "$cluster" "$archive"
}

render() { # render OVERLAY IMAGE...: sets manifests to the overlay with these images
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

print_addresses() {
	local address port=8080 node_ports first='' deployments namespace settings service_b
	deployments=$(kubectl get deployments --all-namespaces --selector "$part_of,app.kubernetes.io/name=service-a" --output \
		'jsonpath={range .items[*]}{.metadata.namespace} {.spec.template.spec.containers[0].envFrom[0].configMapRef.name}{"\n"}{end}')
	[[ -n $deployments ]] || fail "service-a is not deployed; make deploy deploys it"
	read -r namespace settings <<<"$deployments"
	service_b=$(kubectl --namespace "$namespace" get configmap "$settings" --output 'jsonpath={.data.SERVICE_B_HTTP_URL}')
	# deploy/kind/cluster.yaml maps this NodePort, of service-a or of a gateway, to a port of this machine. A Service of type
	# LoadBalancer has one too, but serves it only on nodes with pods.
	node_ports=$(kubectl --namespace "$namespace" get services --output \
		'jsonpath={.items[?(@.spec.type=="NodePort")].spec.ports[*].nodePort}')
	if [[ " $node_ports " == *' 30080 '* ]]; then
		address=$(docker port "$cluster-control-plane" 30080/tcp)
		port=${address##*:}
	else
		first="
First:       kubectl --context kind-$cluster --namespace $namespace port-forward service/service-a $port:80"
	fi
	cat <<ADDRESSES
$first
The page:    http://localhost:$port
Calls:       curl 'http://localhost:$port/api/spread?via=grpc&n=300'
From a pod:  kubectl --context kind-$cluster --namespace $namespace exec deploy/service-a -- /service probe $service_b/health
More:        make status, make logs, make kind-down
ADDRESSES
}

status() {
	need_cluster
	kubectl get nodes --label-columns topology.kubernetes.io/zone
	echo
	kubectl get pods --all-namespaces --selector "$part_of" --sort-by .metadata.name --label-columns topology.kubernetes.io/zone --output wide
	echo
	kubectl get services,horizontalpodautoscalers,poddisruptionbudgets --all-namespaces --selector "$part_of"
	print_addresses
}

down() {
	if exists; then
		kind delete cluster --name "$cluster"
	else
		say "there is no cluster $cluster"
	fi
}

case ${1-} in
	up | deploy | status | down)
		(($# == 1)) || fail "$1 takes no arguments; see --help"
		need_tools docker kind kubectl
		"$1"
		;;
	-h | --help) help ;;
	*)
		help >&2
		exit 2
		;;
esac
