#!/usr/bin/env bash
# See --help, and common.sh.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
name=aks-down
. scripts/aks/common.sh

help() {
	cat <<'HELP'
usage: scripts/aks/down.sh [--dry-run] [--yes] [--purge]

Deletes what scripts/aks/up.sh and scripts/aks/github.sh created: the resource
group AKS_GROUP with everything in it, the role assignments of its identities
elsewhere, the app registration for GitHub, and kubectl's context. It asks first,
and refuses a group that up.sh did not create.

  --dry-run  print the commands instead. Changes nothing
  --yes      do not ask
  --purge    also delete the logs for good. Otherwise Azure keeps the workspace
             for 14 days, in which it can be recovered

Settings: AKS_GROUP and AKS_CLUSTER, from the environment or the file aks.env.
HELP
}

purge=0
for argument in "$@"; do
	case $argument in
		--dry-run) dry_run=1 ;;
		--yes) yes=1 ;;
		--purge) purge=1 ;;
		-h | --help)
			help
			exit
			;;
		*)
			help >&2
			exit 2
			;;
	esac
done

main() {
	local kept=
	load_settings
	check_az
	find_group
	if [[ -z $group_id ]]; then
		say "there is no resource group $AKS_GROUP in the subscription $subscription_name, so there is nothing to delete"
		return
	fi
	find_assignments
	if ! ((dry_run)); then
		describe
		confirm "Delete this from the subscription $subscription_name ($subscription)?"
	fi
	delete
	forget_context
	if [[ -n $kept ]]; then
		say "az could not delete everything outside of the group, see above; run this when the cause is removed:"
		printf '%s\n' "$kept" >&2
		exit 1
	fi
}

# find_group sets group_id, which is empty if there is no group, and app to the id of the app registration for GitHub, if there
# is one. Azure ignores the case of the group's name, as az group show does, which would fail if there is none.
find_group() {
	local exists found made_by
	group_id=
	exists=$(look az group exists --name "$AKS_GROUP")
	if [[ $exists != true ]]; then return; fi
	found=$(look az group show --name "$AKS_GROUP" --query "[[id, tags.\"${tag%%=*}\", tags.\"$app_tag\"]]" --output tsv)
	read -r group_id made_by app <<<"$found"
	[[ $made_by == "${tag#*=}" ]] ||
		fail "the resource group $AKS_GROUP has no tag $tag, so it is not from aks-up; delete it yourself if you mean it: az group delete --name $AKS_GROUP"
	if [[ $app == None ]]; then app=; fi # as az prints null
	if [[ -z $app ]]; then return; fi
	# Who may not read the directory tries to delete it.
	if found=$(az ad app list --filter "appId eq '$app'" --query '[].appId' --output tsv 2>/dev/null); then app=$found; fi
}

# find_assignments sets assignments to the ids of the role assignments that the identities of the group have outside of it.
# Azure deletes those inside with the group, and keeps the others, without a name for their principal.
find_assignments() {
	local principals principal app_principal found id scope cluster group
	assignments=
	cluster=$(look az aks list --resource-group "$AKS_GROUP" \
		--query '[].[identity.principalId, identityProfile.kubeletidentity.objectId][]' --output tsv)
	principals=$(look az identity list --resource-group "$AKS_GROUP" --query '[].principalId' --output tsv)
	principals="$cluster $principals"
	if [[ -n $app ]]; then
		app_principal=$(az ad sp list --filter "appId eq '$app'" --query '[].id' --output tsv 2>/dev/null) || app_principal=
		principals="$principals $app_principal"
	fi
	principals=" ${principals//[[:space:]]/ } "
	group=$(tr '[:upper:]' '[:lower:]' <<<"$group_id")
	found=$(look az role assignment list --all --fill-principal-name false --query '[].[principalId, id, scope]' --output tsv)
	while read -r principal id scope; do
		if [[ -z $principal || $principals != *" $principal "* ]]; then continue; fi
		scope=$(tr '[:upper:]' '[:lower:]' <<<"$scope")
		case $scope/ in
			"$group"/*) ;;
			*) assignments="$assignments $id" ;;
		esac
	done <<<"$found"
}

describe() {
	local id
	echo "To be deleted:"
	echo "  resource group $AKS_GROUP with:"
	look az resource list --resource-group "$AKS_GROUP" --query '[].[type, name]' --output tsv | sed 's/^/    /'
	if ((purge)); then echo "  the logs for good"; fi
	for id in $assignments; do echo "  role assignment $id"; done
	if [[ -n $app ]]; then echo "  app registration $app, with which GitHub deploys"; fi
}

delete() {
	local id workspaces workspace
	local group=(--resource-group "$AKS_GROUP")
	for id in $assignments; do
		step "role assignment outside of the group"
		delete_outside az role assignment delete --ids "$id"
	done
	if [[ -n $app ]]; then
		step "app registration for GitHub, with its federated credentials"
		delete_outside az ad app delete --id "$app"
	fi
	if ((purge)); then
		step "logs, for good"
		workspaces=$(look az monitor log-analytics workspace list "${group[@]}" --query '[].name' --output tsv) # never empty
		for workspace in $workspaces; do
			run az monitor log-analytics workspace delete "${group[@]}" --workspace-name "$workspace" --force true --yes # never empty
		done
	fi
	step "resource group $AKS_GROUP, which takes 5 to 15 minutes"
	run az group delete "${group[@]}" --yes # never empty
}

# delete_outside az ARGUMENT...: deletes what is outside of the group. If that fails, it adds the command to kept, and the group,
# which costs money, is deleted all the same. A later run could not find the rest again.
delete_outside() {
	local command
	command=$(quote "$@")
	if ((dry_run)); then
		echo "$command"
	elif ! AZURE_CORE_OUTPUT=none AZURE_CORE_ONLY_SHOW_ERRORS=yes "$@"; then
		kept=${kept:+$kept$'\n'}$command
	fi
}

# forget_context removes the context of kubectl, with its cluster and user, as az aks get-credentials named them. Only with the
# group: another subscription may have a group and a cluster of these names.
forget_context() {
	local contexts cluster user
	type -P kubectl >/dev/null || return 0
	contexts=$(kubectl config get-contexts --output name) # config view cannot filter an empty list
	if ! grep -qxF "$AKS_CLUSTER" <<<"$contexts"; then return; fi
	cluster=$(kubectl config view --output "jsonpath={.contexts[?(@.name==\"$AKS_CLUSTER\")].context.cluster}")
	user=$(kubectl config view --output "jsonpath={.contexts[?(@.name==\"$AKS_CLUSTER\")].context.user}")
	# A context of another cluster may have the same name.
	if ! grep -qixF "clusterUser_${AKS_GROUP}_$AKS_CLUSTER" <<<"$user"; then return; fi
	step "kubectl's context $AKS_CLUSTER"
	run kubectl config delete-context "$AKS_CLUSTER"
	run kubectl config delete-cluster "$cluster"
	run kubectl config delete-user "$user"
}

main
say "[$((SECONDS - started)) s] done"
