#!/usr/bin/env bash
# Sourced by kind.sh, mesh.sh and logs.sh, which set name: their output, and their calls of the kind cluster.
#
# bash 3.2, which macOS has, ignores a failure inside $(…) unless it is the last command there. So each $(…) here and in
# those scripts has one command, and its output is assigned on a line of its own, whose failure ends the script. A failure
# inside <(…) is always ignored: do not use it.

cluster=${KIND_CLUSTER:-tandem}

say() { echo "${name:?}: $*" >&2; }
fail() {
	say "$*"
	exit 1
}

# kubectl's current context may be another cluster.
kubectl() { command kubectl --context "kind-$cluster" "$@"; }

need_tools() { # need_tools TOOL...
	local tool
	for tool in "$@"; do
		type -P "$tool" >/dev/null || fail "$tool is not on PATH"
	done
}
