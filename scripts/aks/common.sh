#!/usr/bin/env bash
# Sourced by the other scripts of this folder, which set name: their settings, their output, and their calls of az. As in
# ../cluster.sh, each $(…) has one command and is assigned on a line of its own.
# shellcheck disable=SC2016,SC2034,SC2154 # they use its variables; dollars are those of the recipe

dry_run=0 yes=0 subscription=
started=$SECONDS
work=$(mktemp -d "${TMPDIR:-/tmp}/aks.XXXXXX")
trap 'rm -rf "$work"' EXIT

readonly tag=made-by=tandem-aks-up # of the resource group: aks-down deletes no group without it
readonly app_tag=github-app # of the resource group: id of the app registration that github.sh created; names are not unique
readonly namespace=tandem gateway_namespace=tandem-gateway
readonly settings='AKS_GROUP AKS_LOCATION AKS_CLUSTER AKS_REGISTRY AKS_SKU AKS_TIER AKS_VERSION AKS_NODE_SIZE AKS_NODES_MIN
	AKS_NODES_MAX AKS_ZONES AKS_ADMIN AKS_ADMIN_TYPE MESH IMAGES RELEASE RELEASE_IMAGES GITHUB_ENVIRONMENT GITHUB_SUBJECT'

say() { echo "$name: $*" >&2; }
fail() {
	say "$*"
	exit 1
}

# step TEXT: says what is done next, with the time since the start.
step() {
	local seconds=$((SECONDS - started))
	if ((dry_run)); then
		printf '\n# %s\n' "$1"
	else
		printf '%s: [%d:%02d] %s\n' "$name" $((seconds / 60)) $((seconds % 60)) "$1" >&2
	fi
}

# load_settings: a setting comes from the environment, then from the file aks.env, then from its default.
load_settings() {
	local file=${AKS_ENV:-aks.env} line key
	if [[ -f $file ]]; then
		while IFS= read -r line || [[ -n $line ]]; do
			if [[ -z $line || $line == '#'* ]]; then continue; fi
			key=${line%%=*}
			[[ $line == *=* && " ${settings//[[:space:]]/ } " == *" $key "* ]] ||
				fail "$file: $key is not a setting; aks.env.example lists them, one NAME=VALUE a line"
			if [[ -z ${!key-} ]]; then printf -v "$key" %s "${line#*=}"; fi
		done <"$file"
	elif [[ -n ${AKS_ENV-} ]]; then
		fail "there is no file $AKS_ENV, which AKS_ENV names"
	fi
	: "${AKS_GROUP:=tandem}" "${AKS_LOCATION:=eastus2}" "${AKS_CLUSTER:=$AKS_GROUP}" "${AKS_REGISTRY:=}" "${AKS_SKU:=base}"
	: "${AKS_TIER:=free}" "${AKS_VERSION:=}" "${AKS_NODE_SIZE:=Standard_D2s_v5}" "${AKS_NODES_MIN:=3}" "${AKS_NODES_MAX:=5}"
	: "${AKS_ZONES:=1 2 3}" "${AKS_ADMIN:=}" "${AKS_ADMIN_TYPE:=User}" "${MESH:=none}" "${IMAGES:=build}" "${RELEASE:=}" "${RELEASE_IMAGES:=}"
	: "${GITHUB_ENVIRONMENT:=aks}" "${GITHUB_SUBJECT:=}"
	one_of AKS_SKU base automatic
	one_of AKS_ADMIN_TYPE User Group ServicePrincipal
	one_of AKS_TIER free standard premium
	one_of MESH none istio
	one_of IMAGES build push import
	[[ $AKS_NODES_MIN =~ ^[1-9][0-9]*$ && $AKS_NODES_MAX =~ ^[1-9][0-9]*$ && $AKS_NODES_MIN -le $AKS_NODES_MAX ]] ||
		fail "AKS_NODES_MIN=$AKS_NODES_MIN and AKS_NODES_MAX=$AKS_NODES_MAX are not numbers from 1, the first not above the second"
	[[ -z $AKS_REGISTRY || $AKS_REGISTRY =~ ^[a-z0-9]{5,50}$ ]] ||
		fail "AKS_REGISTRY=$AKS_REGISTRY is not a name of 5 to 50 lower-case letters and digits"
	if [[ $IMAGES == import && (-z $RELEASE || -z $RELEASE_IMAGES) ]]; then
		fail "IMAGES=import needs RELEASE, such as v1.2.3, and RELEASE_IMAGES, such as ghcr.io/OWNER/tandem"
	fi
}

one_of() { # one_of NAME VALUE...
	local key=$1 value
	shift
	for value in "$@"; do
		if [[ ${!key} == "$value" ]]; then return; fi
	done
	fail "$key=${!key} is not one of: $*"
}

# check_az: az is there, recent enough, and logged in. Sets subscription and its name. All commands of az that follow name
# it: another terminal may run az account set meanwhile.
check_az() {
	local version minor account
	type -P az >/dev/null || fail "az is not on PATH; install azure-cli: https://aka.ms/azure-cli"
	version=$(az version --query '"azure-cli"' --output tsv)
	minor=${version#*.}
	# 2.86 is the first version with --enable-app-routing-istio.
	if ((${version%%.*} < 2 || (${version%%.*} == 2 && ${minor%%.*} < 86))); then
		fail "az is $version, and 2.86.0 or later is needed; run az upgrade"
	fi
	account=$(az account show --query '[id, name]' --output tsv 2>/dev/null) || fail "az is not logged in; run az login"
	subscription=${account%%[[:space:]]*}
	subscription_name=${account#*[[:space:]]}
	if ((dry_run)); then pin "$subscription"; fi
}

az() {
	case $1 in
		account | ad) command az "$@" ;; # they are of the login and of the tenant
		*) command az "$@" ${subscription:+--subscription "$subscription"} ;;
	esac
}

# pin ID: prints the same for the commands of a dry run.
pin() {
	cat <<PIN
SUBSCRIPTION=$1
az() {
  case \$1 in
    account | ad) command az "\$@" ;; # they are of the login and of the tenant
    *) command az "\$@" --subscription "\$SUBSCRIPTION" ;;
  esac
}
PIN
}

confirm() { # confirm QUESTION
	local reply
	if ((yes)); then return; fi
	read -r -p "$1 [y/N] " reply || true # no input is no
	[[ $reply == [yY] || $reply == [yY][eE][sS] ]] || fail "nothing was changed; --yes skips the question"
}

# run COMMAND...: runs a command that changes something. A dry run prints it instead.
run() {
	if ((dry_run)); then
		quote "$@"
	elif [[ $1 == az ]]; then
		AZURE_CORE_OUTPUT=none AZURE_CORE_ONLY_SHOW_ERRORS=yes "$@" 2>"$work/errors" || az_failed "$@"
	else
		"$@"
	fi
}

# ask VARIABLE COMMAND...: sets VARIABLE to what the command prints. A dry run prints the assignment instead, and the
# commands that it prints later refer to the variable.
ask() {
	local variable=$1 value
	shift
	if ((dry_run)); then
		value=$(quote "$@")
		printf '%s=$(%s)\n' "$variable" "$value"
		printf -v "$variable" %s "\$$variable"
		return
	fi
	value=$(look "$@")
	[[ -n $value ]] || fail "$*: it prints nothing"
	printf -v "$variable" %s "$value"
}

# look az ARGUMENT...: prints what az reads.
look() { "$@" 2>"$work/errors" || az_failed "$@"; }

# look_up VARIABLE az ARGUMENT...: sets VARIABLE to what az prints of a resource, or to nothing if az does not find it. A dry run
# finds nothing.
look_up() {
	local variable=$1 value='' status=0
	shift
	if ! ((dry_run)); then
		value=$("$@" --output tsv 2>"$work/errors") || status=$?
		case $status in
			0) ;;
			3) value='' ;; # az: missing resource
			*) az_failed "$@" ;;
		esac
	fi
	printf -v "$variable" %s "$value"
}

exists() { # exists az ARGUMENT...: whether az finds the resource
	local id
	look_up id "$@" --query id
	[[ -n $id ]]
}

# assign PRINCIPAL TYPE ROLE SCOPE: gives the role, unless the principal has it there.
assign() {
	local assignments=''
	if ! ((dry_run)); then
		assignments=$(look az role assignment list --scope "$4" --fill-principal-name false \
			--query "[?principalId=='$1' && roleDefinitionName=='$3'].id" --output tsv)
	fi
	if [[ -n $assignments ]]; then return; fi
	run az role assignment create --assignee-object-id "$1" --assignee-principal-type "$2" --role "$3" --scope "$4"
}

# check_mesh: the cluster has the mesh that MESH names.
check_mesh() {
	local mode
	if ((dry_run)); then return; fi
	mode=$(look az aks show --resource-group "$AKS_GROUP" --name "$AKS_CLUSTER" --query serviceMeshProfile.mode --output tsv)
	compare_mesh "$mode"
}

compare_mesh() { # compare_mesh MODE: of the cluster, in Azure's words
	local mesh=none
	if [[ $1 == Istio ]]; then mesh=istio; fi
	[[ $MESH == "$mesh" ]] || fail "the cluster exists with MESH=$mesh; set that, or run make aks-down first"
}

# az_failed COMMAND...: ends the script with the remedy for az's error.
az_failed() {
	local errors
	errors=$(cat "$work/errors")
	case $errors in
		*'az login'* | *AADSTS* | *InvalidAuthenticationToken* | *ExpiredAuthenticationToken*)
			fail "Azure does not accept the login; run az login" ;;
		*UnmatchedPrincipalType*)
			fail "AKS_ADMIN=$AKS_ADMIN is not a $AKS_ADMIN_TYPE; set AKS_ADMIN_TYPE to what it is: User, Group or ServicePrincipal" ;;
		*roleAssignments/write*)
			fail "you may not assign roles; ask an Owner for the role \"Role Based Access Control Administrator\", or to run this" ;;
		*AuthorizationFailed*)
			fail "$1 $2 $3 $4: you may not do this; ask an Owner of the subscription for the role Contributor" ;;
		*MissingSubscriptionRegistration* | *'not registered to use namespace'*)
			fail "a resource provider is not registered; repeat make aks-up, which registers what it needs" ;;
		*[Qq]uota*)
			fail "the quota of the subscription in $AKS_LOCATION is exceeded; request more (https://aka.ms/ProdportalCRP), or set AKS_LOCATION, AKS_NODE_SIZE or AKS_NODES_MIN" ;;
		*AvailabilityZone*)
			fail "$AKS_NODE_SIZE is not offered in all of the zones $AKS_ZONES of $AKS_LOCATION; set AKS_ZONES or AKS_NODE_SIZE" ;;
		*SkuNotAvailable* | *'VM size'*'not allowed'* | *'not available in location'*)
			fail "$AKS_NODE_SIZE is not available to the subscription in $AKS_LOCATION; set AKS_NODE_SIZE or AKS_LOCATION" ;;
		*AlreadyInUse* | *'already in use'* | *NameNotAvailable*)
			fail "$1 $2 $3: the name is taken; set AKS_REGISTRY to another one, as registries share one name space" ;;
		*ResourceNotFound* | *ResourceGroupNotFound* | *'was not found'*)
			fail "$1 $2 $3: there is no such resource in the group $AKS_GROUP; make aks-up creates it" ;;
	esac
	echo "$errors" >&2
	fail "$1 $2 $3 failed, see above; when the cause is removed, repeat the command: it goes on where it stopped"
}

# quote WORD...: prints the words as a command that a shell can read, on lines of at most 110 characters where that works.
# A word with $ refers to a variable of the recipe.
quote() {
	local line='' word
	for word in "$@"; do
		case $word in
			*\$*) word="\"${word//\"/\\\"}\"" ;;
			'' | *[!A-Za-z0-9_./:=,@%+-]*) word="'${word//\'/\'\\\'\'}'" ;;
		esac
		if [[ $word == --* ]] && ((${#line} > 80)); then
			printf '%s \\\n' "$line"
			line="  $word"
		else
			line=${line:+$line }$word
		fi
	done
	printf '%s\n' "$line"
}

# registry_name sets AKS_REGISTRY.
registry_name() {
	local sum
	if [[ -n $AKS_REGISTRY ]]; then return; fi
	if ((dry_run)); then
		echo "AKS_REGISTRY=tandem\$(printf %s \"\$SUBSCRIPTION/$AKS_GROUP\" | cksum | cut -d ' ' -f 1)"
		AKS_REGISTRY='$AKS_REGISTRY'
		return
	fi
	sum=$(printf %s "$subscription/$AKS_GROUP" | cksum)
	AKS_REGISTRY=tandem${sum%% *}
}
