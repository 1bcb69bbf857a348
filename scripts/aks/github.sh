#!/usr/bin/env bash
# See --help, and common.sh.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
name=github
. scripts/aks/common.sh

help() {
	cat <<'HELP'
usage: scripts/aks/github.sh [--dry-run] [--yes] OWNER/REPOSITORY

Lets the workflow deploy-aks.yaml of the repository deploy to the cluster of
make aks-up, without a secret: an app registration in Entra, which accepts the
tokens that GitHub issues to jobs of the environment, with the roles that
up.sh --deploy-only needs. The tag github-app of the resource group records its
id. An environment that does not exist is created, with you as its reviewer. It
prints what to set in GitHub. Safe to repeat; make aks-down deletes the app.

  --dry-run  print the commands instead. Changes nothing
  --yes      accept an environment without required reviewers

Settings, with defaults, besides those of up.sh:
  GITHUB_ENVIRONMENT  aks  environment of the workflow
  GITHUB_SUBJECT           the subject of GitHub's tokens; by default, gh asks
                           GitHub for the repository's
HELP
}

repository=
for argument in "$@"; do
	case $argument in
		--dry-run) dry_run=1 ;;
		--yes) yes=1 ;;
		-h | --help)
			help
			exit
			;;
		*/*) repository=$argument ;;
		*)
			help >&2
			exit 2
			;;
	esac
done
if [[ -z $repository ]]; then
	help >&2
	exit 2
fi

main() {
	local tenant app_name
	load_settings
	check_az
	app_name=tandem-github-$AKS_GROUP-${subscription%%-*} # a tenant may have several subscriptions with a group of this name
	tenant=$(look az account show --query tenantId --output tsv)
	step "what make aks-up created"
	registry_name
	ask REGISTRY_ID az acr show --resource-group "$AKS_GROUP" --name "$AKS_REGISTRY" --query id --output tsv
	ask CLUSTER_ID az aks show --resource-group "$AKS_GROUP" --name "$AKS_CLUSTER" --query id --output tsv
	check_mesh
	find_subject
	make_environment
	make_app
	give_roles
	if ! ((dry_run)); then print_variables; fi
}

# find_subject sets GITHUB_SUBJECT. A repository that was created, renamed or transferred since 15 July 2026 has
# repo:OWNER@OWNER-ID/NAME@ID:environment:ENVIRONMENT, and an older one repo:OWNER/NAME:environment:ENVIRONMENT until its
# administrator chooses the ids (docs.github.com, "Immutable subject claims"). Entra compares the whole text. GitHub's API
# returns what precedes the environment as sub_claim_prefix (seen in a response quoted in Azure/azure-dev#9382, not tried).
find_subject() {
	step "subject of GitHub's tokens"
	if [[ -n $GITHUB_SUBJECT ]]; then return; fi
	if ! ((dry_run)); then
		type -P gh >/dev/null || fail "gh is not on PATH; install it (cli.github.com), or set GITHUB_SUBJECT to the subject that azure/login logs"
		gh auth status >/dev/null 2>&1 || fail "gh is not logged in; run gh auth login"
	fi
	ask SUBJECT_PREFIX gh api "repos/$repository/actions/oidc/customization/sub" --jq '.sub_claim_prefix // ""'
	GITHUB_SUBJECT=$SUBJECT_PREFIX:environment:$GITHUB_ENVIRONMENT
}

# make_environment: Entra accepts the tokens of the environment's jobs, and everybody who may push a branch may change the workflow
# there. So the reviewers keep them from the cluster.
make_environment() {
	local found=missing path=repos/$repository/environments/$GITHUB_ENVIRONMENT
	local page=https://github.com/$repository/settings/environments
	step "environment $GITHUB_ENVIRONMENT of $repository"
	if ! ((dry_run)); then
		if ! gh auth status >/dev/null 2>&1; then # as GITHUB_SUBJECT allows
			confirm "Without gh, logged in, nobody looks whether the environment $GITHUB_ENVIRONMENT has required reviewers ($page). Go on?"
			return
		fi
		if found=$(gh api "$path" --jq '[.protection_rules[] | select(.type == "required_reviewers")] | length' 2>"$work/errors"); then
			((found)) || confirm "The environment $GITHUB_ENVIRONMENT has no required reviewers: everybody who may push to $repository may deploy ($page). Go on?"
			return
		fi
		grep -q 'HTTP 404' "$work/errors" || fail "gh api $path: $(tail -1 "$work/errors")"
	fi
	ask REVIEWER gh api user --jq .id
	run gh api --silent --method PUT "$path" --field 'reviewers[][type]=User' --field "reviewers[][id]=$REVIEWER" ||
		fail "GitHub does not create the environment $GITHUB_ENVIRONMENT with you as reviewer, see above; create it yourself ($page), and repeat"
}

# make_app sets APP_ID and PRINCIPAL_ID. Where it creates something, the id is what az prints then: a list of Entra may not contain
# it yet.
make_app() {
	local found='' credential="github-$GITHUB_ENVIRONMENT" parameters
	step "app registration $app_name"
	if ! ((dry_run)); then
		APP_ID=$(look az group show --name "$AKS_GROUP" --query "tags.\"$app_tag\"" --output tsv)
		if [[ -n $APP_ID ]]; then found=$(look az ad app list --filter "appId eq '$APP_ID'" --query '[].appId' --output tsv); fi
	fi
	if [[ -z $found ]]; then create_app; fi
	PRINCIPAL_ID=
	if ! ((dry_run)); then PRINCIPAL_ID=$(look az ad sp list --filter "appId eq '$APP_ID'" --query '[].id' --output tsv); fi
	if [[ -z $PRINCIPAL_ID ]]; then ask PRINCIPAL_ID az ad sp create --id "$APP_ID" --query id --output tsv; fi
	step "federated credential for the environment $GITHUB_ENVIRONMENT of $repository"
	parameters="{\"name\": \"$credential\", \"issuer\": \"https://token.actions.githubusercontent.com\", \"subject\": \"$GITHUB_SUBJECT\", \"audiences\": [\"api://AzureADTokenExchange\"]}"
	if ! ((dry_run)); then
		found=$(look az ad app federated-credential list --id "$APP_ID" --query "[?name=='$credential'].subject" --output tsv)
	fi
	if [[ -z $found ]]; then
		run az ad app federated-credential create --id "$APP_ID" --parameters "$parameters"
	elif [[ $found != "$GITHUB_SUBJECT" ]]; then
		say "the subject was $found"
		run az ad app federated-credential update --id "$APP_ID" --federated-credential-id "$credential" --parameters "$parameters"
	fi
}

# create_app: any user of the tenant may have registered an app of this name, and az ad app create would return theirs.
create_app() {
	local others=''
	if ! ((dry_run)); then others=$(look az ad app list --filter "displayName eq '$app_name'" --query '[].appId' --output tsv); fi
	[[ -z $others ]] ||
		fail "an app registration $app_name exists that the tag $app_tag of the resource group does not name; if it is yours, delete it and repeat: az ad app delete --id ${others%%[[:space:]]*}"
	ask APP_ID az ad app create --display-name "$app_name" --sign-in-audience AzureADMyOrg --query appId --output tsv
	run az group update --name "$AKS_GROUP" --set "tags.$app_tag=$APP_ID" --force-string
}

give_roles() {
	step "roles of the app"
	assign "$PRINCIPAL_ID" ServicePrincipal AcrPush "$REGISTRY_ID"
	assign "$PRINCIPAL_ID" ServicePrincipal Reader "$REGISTRY_ID" # its login server
	assign "$PRINCIPAL_ID" ServicePrincipal 'Azure Kubernetes Service Cluster User Role' "$CLUSTER_ID" # a kubeconfig, no more
	assign "$PRINCIPAL_ID" ServicePrincipal 'Azure Kubernetes Service RBAC Writer' "$CLUSTER_ID/namespaces/$namespace"
	# The gateway's address.
	assign "$PRINCIPAL_ID" ServicePrincipal 'Azure Kubernetes Service RBAC Reader' "$CLUSTER_ID/namespaces/$gateway_namespace"
}

print_variables() {
	step "done"
	cat <<VARIABLES

Set the variables of the environment $GITHUB_ENVIRONMENT (none is secret). Its reviewers, whom you choose in
https://github.com/$repository/settings/environments, approve each deployment:

gh variable set AZURE_CLIENT_ID       --repo $repository --env $GITHUB_ENVIRONMENT --body $APP_ID
gh variable set AZURE_TENANT_ID       --repo $repository --env $GITHUB_ENVIRONMENT --body $tenant
gh variable set AZURE_SUBSCRIPTION_ID --repo $repository --env $GITHUB_ENVIRONMENT --body $subscription
gh variable set AKS_GROUP             --repo $repository --env $GITHUB_ENVIRONMENT --body $AKS_GROUP
gh variable set AKS_CLUSTER           --repo $repository --env $GITHUB_ENVIRONMENT --body $AKS_CLUSTER
gh variable set AKS_REGISTRY          --repo $repository --env $GITHUB_ENVIRONMENT --body $AKS_REGISTRY
gh variable set MESH                  --repo $repository --env $GITHUB_ENVIRONMENT --body $MESH
VARIABLES
}

main
