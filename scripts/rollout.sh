#!/usr/bin/env bash
# See --help. As in cluster.sh, each $(…) has one command and is assigned on a line of its own.
set -euo pipefail

readonly part_of=app.kubernetes.io/part-of=tandem

help() {
	cat <<'HELP'
usage: scripts/rollout.sh CONTEXT <MANIFESTS

Applies the manifests to the cluster of kubectl's CONTEXT, and waits until their
Deployments and gateway run. If they do not, it shows why. Nothing is deleted.
HELP
}

say() { echo "rollout: $*" >&2; }
fail() {
	say "$*"
	exit 1
}

kubectl() { command kubectl --context "$context" "$@"; }

rollout() {
	local manifests
	manifests=$(cat)
	if grep -q '^kind: HorizontalPodAutoscaler' <<<"$manifests"; then keep_replicas "$manifests"; fi
	# --server-side: the API server merges, and records which manager set each field. --force-conflicts: the manifests
	# override manual changes. No --prune: it would delete the ConfigMaps of earlier versions, which running pods and
	# kubectl rollout undo need.
	kubectl apply --server-side --force-conflicts --field-manager=tandem --filename - <<<"$manifests"
	if ! wait_for_rollouts "$manifests"; then
		explain || true
		fail "it does not run; the pods, the last warnings, and the last log lines of containers that ended are above"
	fi
	if grep -q '^kind: Gateway$' <<<"$manifests"; then
		# A cloud takes a minute to assign an address.
		kubectl wait --for=condition=Programmed gateway --selector "$part_of" --all-namespaces --timeout=300s ||
			fail "the gateway does not run; kubectl describe gateway says why"
	fi
}

# keep_replicas MANIFESTS: makes a second field manager own the current number of replicas of each Deployment. Manifests
# with autoscalers do not set the number. Without another owner, applying them would reset it to 1, the default.
keep_replicas() {
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
		# A rollout without progress fails at its own deadline, but Kubernetes checks that only until the rollout is first
		# complete. So there is a limit here too. Pods are replaced one by one, with a minute for each: 20 s of
		# minReadySeconds, 30 s for the startup probe, and 10 s to schedule the pod.
		kubectl --namespace "$namespace" rollout status "deployment/$name" --timeout=$((deadline + replicas * 60))s </dev/null || failed=1
	done <<<"$deployments"
	return $failed
}

explain() {
	local namespaces namespace name
	kubectl get pods --all-namespaces --selector "$part_of" --output wide >&2
	namespaces=$(kubectl get namespaces --selector "$part_of" --output 'jsonpath={.items[*].metadata.name}')
	for namespace in $namespaces; do
		kubectl --namespace "$namespace" get events --field-selector type=Warning --sort-by .lastTimestamp | tail -10 >&2
	done
	# Containers that exited, for example because of an invalid setting.
	kubectl get pods --all-namespaces --selector "$part_of" --output \
		'jsonpath={range .items[?(@.status.containerStatuses[*].lastState.terminated)]}{.metadata.namespace} {.metadata.name}{"\n"}{end}' |
		while read -r namespace name; do
			say "a container of pod $name exited and was restarted; its last lines:"
			kubectl --namespace "$namespace" logs "$name" --previous --tail 5 </dev/null >&2 || true # the pod may be deleted
		done
}

case ${1-} in
	-h | --help) help ;;
	'' | -*)
		help >&2
		exit 2
		;;
	*)
		context=$1
		rollout
		;;
esac
