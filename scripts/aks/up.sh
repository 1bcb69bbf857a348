#!/usr/bin/env bash
# See --help. common.sh says how commands are run, printed in a dry run, and explained when they fail.
# shellcheck disable=SC2016 # dollars are money, or variables of the recipe
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
name=aks-up
. scripts/aks/common.sh

help() {
	cat <<'HELP'
usage: scripts/aks/up.sh [--dry-run] [--yes] [--deploy-only]

Creates what both services need on AKS, deploys them, and checks that they
respond. It first says what it will create and roughly what that costs, and asks.
What exists is left as it is: repeat the command to resume after a failure.

  --dry-run      print the commands instead, as a recipe for an empty
                 subscription. Asks Azure nothing
  --yes          do not ask
  --deploy-only  build and deploy to the cluster that exists, and roll back if
                 that fails. It needs no more than the roles of github.sh

Settings, with defaults, from the environment or the file aks.env
(aks.env.example; AKS_ENV names another file):
  AKS_GROUP       tandem           resource group, which contains everything
  AKS_LOCATION    eastus2          region
  AKS_CLUSTER     AKS_GROUP        name of the cluster and of kubectl's context
  AKS_REGISTRY                     name of the registry, unique in all of Azure;
                                   by default from the subscription and group
  AKS_SKU         base             or automatic: AKS Automatic, which chooses and
                                   scales its nodes
  AKS_TIER        free             or standard, premium: with an SLA
  AKS_VERSION                      of Kubernetes; by default that of the region
  AKS_NODE_SIZE   Standard_D2s_v5  amd64, as are the images
  AKS_NODES_MIN   3                nodes at the start, and at least
  AKS_NODES_MAX   5                nodes at most
  AKS_ZONES       1 2 3            availability zones; a region that has none
                                   gets none. "none" uses none
  AKS_ADMIN                        object id of the user or group that administers
                                   the cluster; by default you
  AKS_ADMIN_TYPE  User             or Group, ServicePrincipal: what AKS_ADMIN is
  MESH            none             or istio: AKS's Istio add-on, overlay aks-istio
  IMAGES          build            in Azure, without Docker on this machine; push:
                                   docker buildx builds and pushes them; import:
                                   copy those of a release
  RELEASE                          for import: the release's tag, such as v1.2.3
  RELEASE_IMAGES                   for import: ghcr.io/OWNER/REPOSITORY
HELP
}

deploy_only=0
for argument in "$@"; do
	case $argument in
		--dry-run) dry_run=1 ;;
		--yes) yes=1 ;;
		--deploy-only) deploy_only=1 ;;
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
	load_settings
	# Of the gateway's Service: the roles of github.sh do not include its Gateway.
	gateway_address=(kubectl --context "$AKS_CLUSTER" --namespace "$gateway_namespace" get services
		--selector gateway.networking.k8s.io/gateway-name=gateway
		--output 'jsonpath={.items[0].status.loadBalancer.ingress[0].ip}')
	if ((dry_run)); then
		cat <<'RECIPE'
# The commands of make aks-up in an empty subscription. Save them as a file and run it with bash, in the folder of the
# repository: pasted into a shell, the first error would close that shell.
set -euo pipefail
[ -x bin/kustomize ] || make bin/kustomize
RECIPE
		pin '$(az account show --query id --output tsv)'
	else
		check_az
	fi
	if ((deploy_only)); then
		check_tools
		check_mesh
		find_registry
		# Before the images, which take longer than the five minutes for which Entra accepts the job's token of GitHub: az keeps its
		# own tokens for the cluster from here on (Azure/login#372).
		get_credentials
		make_images
		deploy_or_roll_back
		return
	fi
	if ! ((dry_run)); then
		plan
		confirm "Create this in the subscription $subscription_name ($subscription)?"
		check_tools
		check_subscription
	fi
	make_group
	make_registry
	make_images
	make_workspaces
	make_cluster
	give_roles
	make_identity
	make_rules
	get_credentials
	# AKS Automatic protects its namespaces from changes.
	if [[ $AKS_SKU == base ]]; then
		step "settings of Container insights"
		run kubectl --context "$AKS_CLUSTER" apply --server-side --force-conflicts --kustomize deploy/azure/container-insights
	fi
	deploy
	check_calls
	if ! ((dry_run)); then print_addresses; fi
}

check_tools() {
	local tool
	for tool in kubectl curl git; do
		type -P $tool >/dev/null || fail "$tool is not on PATH"
	done
	type -P kubelogin >/dev/null ||
		fail "kubelogin is not on PATH, and kubectl needs it to sign in with Entra; az aks install-cli installs it"
	[[ -x bin/kustomize ]] || fail "there is no bin/kustomize; make bin/kustomize builds it"
	if [[ $IMAGES == push ]]; then
		docker buildx version >/dev/null 2>&1 || fail "IMAGES=push needs docker with buildx; IMAGES=build needs neither"
	fi
	check_context
}

# check_context: az aks get-credentials would replace a context of this name, and a cluster, whatever they lead to.
check_context() {
	local server cluster ours=''
	if ((dry_run)); then return; fi
	# config view fails if there are none.
	server=$(kubectl config view --output "jsonpath={.clusters[?(@.name==\"$AKS_CLUSTER\")].cluster.server}" 2>/dev/null) || server=
	cluster=$(kubectl config view --output "jsonpath={.contexts[?(@.name==\"$AKS_CLUSTER\")].context.cluster}" 2>/dev/null) || cluster=
	if [[ -z $server$cluster ]]; then return; fi
	KUBECONFIG=$work/kubeconfig look_up ours az aks get-credentials --resource-group "$AKS_GROUP" --name "$AKS_CLUSTER"
	if [[ -s $work/kubeconfig ]]; then
		ours=$(kubectl --kubeconfig "$work/kubeconfig" config view --output 'jsonpath={.clusters[0].cluster.server}')
	fi
	[[ $server == "$ours" && ${cluster:-$AKS_CLUSTER} == "$AKS_CLUSTER" ]] ||
		fail "kubectl has a context or cluster $AKS_CLUSTER that is another one, and it would be replaced; set AKS_CLUSTER to another name or KUBECONFIG to another file, or delete it: kubectl config delete-context $AKS_CLUSTER; kubectl config delete-cluster $AKS_CLUSTER"
}

# The prices are from Azure's price list of 2025 for East US 2, in US dollars, rounded, and were not checked since.
plan() {
	local nodes="$AKS_NODES_MIN to $AKS_NODES_MAX nodes $AKS_NODE_SIZE" node_price='see the price of this size' control total
	if [[ $AKS_NODE_SIZE == Standard_D2s_v5 ]]; then
		node_price='$0.12 each, with its disk'
		total=$((AKS_NODES_MIN * 12 + 4))
	fi
	case $AKS_TIER in
		free) control='free, without an SLA' ;;
		standard) control='$0.10' total=${total:+$((total + 10))} ;;
		premium) control='$0.60' total=${total:+$((total + 60))} ;;
	esac
	if [[ $AKS_SKU == automatic ]]; then
		nodes='nodes that AKS Automatic chooses' node_price='$0.05 for each vCPU, and more for the service' control='$0.16' total=
	fi
	echo "In the resource group $AKS_GROUP, in $AKS_LOCATION:"
	printf '  %-48s %s\n' "cluster $AKS_CLUSTER, AKS $AKS_SKU" "$control" \
		"$nodes" "$node_price" \
		'load balancer with two public addresses' '$0.03' \
		'container registry, Basic' '$0.01' \
		'Log Analytics workspace' '$2.30 to $2.80 for each GB of logs' \
		'Azure Monitor workspace (Prometheus)' '$0.16 for 10 million samples' \
		'identity and role assignments' free
	if [[ -n ${total-} ]]; then
		printf 'Together about $%d.%02d an hour at the start, plus logs and metrics.\n' $((total / 100)) $((total % 100))
	fi
	echo 'Prices are for an hour: list prices of 2025 for East US 2, approximate; see azure.microsoft.com/pricing.'
	echo 'make aks-down deletes all of it.'
}

# check_subscription: what would otherwise fail late. It registers providers, and corrects AKS_ZONES.
check_subscription() {
	local registered provider zones usage scope=/subscriptions/$subscription cores
	step "looking at the subscription $subscription_name"
	registered=$(look az provider list --query "[?registrationState=='Registered'].namespace" --output tsv)
	for provider in Microsoft.ContainerService Microsoft.ContainerRegistry Microsoft.Compute Microsoft.Network \
		Microsoft.ManagedIdentity Microsoft.Monitor Microsoft.Insights Microsoft.OperationalInsights Microsoft.AlertsManagement; do
		if grep -qixF "$provider" <<<"$registered"; then continue; fi
		step "registering the resource provider $provider, once for a subscription"
		run az provider register --namespace "$provider" --wait
	done
	if exists az group show --name "$AKS_GROUP"; then scope=$scope/resourceGroups/$AKS_GROUP; fi
	check_rights "$scope"
	if [[ $AKS_SKU == automatic ]]; then return; fi
	if [[ $AKS_ZONES != none ]]; then
		zones=$(look az account list-locations --query "[?name=='$AKS_LOCATION'].availabilityZoneMappings[].logicalZone" --output tsv)
		if [[ -z $zones ]]; then
			say "$AKS_LOCATION has no availability zones, so the nodes are in none"
			AKS_ZONES=none
		fi
	fi
	if [[ $AKS_NODE_SIZE =~ ^Standard_[A-Z]+([0-9]+) ]] && ! exists az aks show --resource-group "$AKS_GROUP" --name "$AKS_CLUSTER"; then
		cores=$((BASH_REMATCH[1] * AKS_NODES_MIN))
		usage=$(look az vm list-usage --location "$AKS_LOCATION" --query "[?name.value=='cores'].[limit, currentValue]" --output tsv)
		# shellcheck disable=SC2086 # two numbers
		set -- ${usage:-$cores 0}
		(($1 - $2 >= cores)) || fail "the quota of vCPUs in $AKS_LOCATION is exceeded: $AKS_NODES_MIN nodes $AKS_NODE_SIZE need $cores, and $(($1 - $2)) of $1 are left; request more in the portal (Quotas), or set AKS_LOCATION, AKS_NODE_SIZE or AKS_NODES_MIN"
	fi
}

# check_rights SCOPE: whether the user may assign roles. Contributor may not, and would notice after the cluster was
# created.
check_rights() {
	local permissions actions not_actions
	permissions=$(look az rest --method get --url "$1/providers/Microsoft.Authorization/permissions?api-version=2022-04-01" \
		--query "value[].join('|', [join(',', actions), join(',', notActions)])" --output tsv)
	permissions=$(tr '[:upper:]' '[:lower:]' <<<"$permissions")
	while IFS='|' read -r actions not_actions; do
		if covers_assignments "$actions" && ! covers_assignments "$not_actions"; then return; fi
	done <<<"$permissions"
	fail "you may not assign roles in $1; ask an Owner for the role \"Role Based Access Control Administrator\", or to run make aks-up"
}

covers_assignments() {
	case ",$1," in
		*',*,'* | *',*/write,'* | *',microsoft.authorization/*,'* | *',microsoft.authorization/*/write,'* | \
			*',microsoft.authorization/roleassignments/*,'* | *',microsoft.authorization/roleassignments/write,'*) ;;
		*) return 1 ;;
	esac
}

make_group() {
	local group
	step "resource group $AKS_GROUP"
	look_up group az group show --name "$AKS_GROUP" --query "[[id, tags.\"${tag%%=*}\"]]"
	if [[ -z $group ]]; then
		run az group create --name "$AKS_GROUP" --location "$AKS_LOCATION" --tags "$tag"
		return
	fi
	[[ ${group##*[[:space:]]} == "${tag#*=}" ]] ||
		fail "the resource group $AKS_GROUP exists and has no tag $tag, so it is not from aks-up; set AKS_GROUP to another name"
}

make_registry() {
	local available
	step "container registry"
	registry_name
	if ! exists az acr show --resource-group "$AKS_GROUP" --name "$AKS_REGISTRY"; then
		if ! ((dry_run)); then
			available=$(look az acr check-name --name "$AKS_REGISTRY" --query nameAvailable --output tsv)
			[[ $available == true ]] ||
				fail "the registry name $AKS_REGISTRY is taken, as registries of all of Azure share one name space; set AKS_REGISTRY to another one"
		fi
		run az acr create --resource-group "$AKS_GROUP" --name "$AKS_REGISTRY" --location "$AKS_LOCATION" --sku Basic --admin-enabled false
	fi
	find_registry
}

find_registry() {
	registry_name
	ask REGISTRY_ID az acr show --resource-group "$AKS_GROUP" --name "$AKS_REGISTRY" --query id --output tsv
	# Not NAME.azurecr.io: registries may have a longer name here.
	ask REGISTRY_SERVER az acr show --resource-group "$AKS_GROUP" --name "$AKS_REGISTRY" --query loginServer --output tsv
}

# make_images: sets images to lines of kustomize, one for each service. Images are named by their digest there: a tag can
# be moved.
make_images() {
	local services service repository variable IMAGE_TAG=$RELEASE
	services=$(scripts/services.sh)
	images=
	if [[ $IMAGES != import ]]; then
		step "sources of the images"
		ask IMAGE_TAG scripts/source-id.sh
		ask IMAGE_VERSION git describe --tags --always --dirty
		ask IMAGE_REVISION git rev-parse HEAD
	fi
	for service in $services; do
		repository=tandem/$service
		step "image $service"
		if ! image_exists "$repository:$IMAGE_TAG"; then make_image; fi
		variable=$(tr 'a-z-' 'A-Z_' <<<"${service}_digest")
		ask "$variable" az acr repository show --name "$AKS_REGISTRY" --image "$repository:$IMAGE_TAG" --query digest --output tsv
		images="$images
  - { name: localhost/tandem/$service, newName: $REGISTRY_SERVER/$repository, digest: \"${!variable}\" }"
	done
}

image_exists() { # image_exists REPOSITORY:TAG
	if ((dry_run)); then return 1; fi
	if az acr repository show --name "$AKS_REGISTRY" --image "$1" --output none 2>"$work/errors"; then return; fi
	# As the registry says it; az has one exit status for all errors of a registry.
	if grep -qiE 'does not exist|not known to registry|not found|unknown' "$work/errors"; then return 1; fi
	az_failed az acr repository show
}

make_image() {
	case $IMAGES in
		build)
			run az acr run --registry "$AKS_REGISTRY" --platform linux/amd64 --file scripts/aks/build.yaml \
				--set "service=$service" --set "tag=$IMAGE_TAG" --set "version=$IMAGE_VERSION" --set "revision=$IMAGE_REVISION" .
			;;
		push)
			run az acr login --name "$AKS_REGISTRY"
			run docker buildx build --push --platform linux/amd64 --tag "$REGISTRY_SERVER/$repository:$IMAGE_TAG" \
				--build-arg "SERVICE=$service" --build-arg "VERSION=$IMAGE_VERSION" --build-arg "REVISION=$IMAGE_REVISION" .
			;;
		import)
			run az acr import --name "$AKS_REGISTRY" --source "$RELEASE_IMAGES/$service:$RELEASE" --image "$repository:$IMAGE_TAG"
			;;
	esac
}

make_workspaces() {
	step "workspaces for logs and metrics"
	if ! exists az monitor log-analytics workspace show --resource-group "$AKS_GROUP" --name "$AKS_CLUSTER-logs"; then
		run az monitor log-analytics workspace create --resource-group "$AKS_GROUP" --name "$AKS_CLUSTER-logs" --location "$AKS_LOCATION"
	fi
	ask LOGS_ID az monitor log-analytics workspace show --resource-group "$AKS_GROUP" --name "$AKS_CLUSTER-logs" --query id --output tsv
	if ! exists az monitor account show --resource-group "$AKS_GROUP" --name "$AKS_CLUSTER-metrics"; then
		run az monitor account create --resource-group "$AKS_GROUP" --name "$AKS_CLUSTER-metrics" --location "$AKS_LOCATION"
	fi
	ask METRICS_ID az monitor account show --resource-group "$AKS_GROUP" --name "$AKS_CLUSTER-metrics" --query id --output tsv
}

make_cluster() {
	local cluster=(--resource-group "$AKS_GROUP" --name "$AKS_CLUSTER") state
	step "cluster $AKS_CLUSTER, which takes 5 to 15 minutes to create"
	look_up state az aks show "${cluster[@]}" --query '[[provisioningState, serviceMeshProfile.mode]]' # never empty
	if [[ -n $state ]]; then
		compare_mesh "${state##*[[:space:]]}"
		state=${state%%[[:space:]]*}
		case $state in
			Succeeded) ;;
			Failed | Canceled)
				say "its last operation is $state; reconciling"
				run az aks update "${cluster[@]}" --yes # never empty
				;;
			*)
				say "it is $state; waiting"
				run az aks wait "${cluster[@]}" --created --interval 10 # never empty
				;;
		esac
	else
		create_cluster
	fi
	ask CLUSTER_ID az aks show "${cluster[@]}" --query id --output tsv # never empty
	if ! ((dry_run)); then connect_monitors; fi
}

create_cluster() {
	local arguments=(--location "$AKS_LOCATION" --sku "$AKS_SKU" --enable-gateway-api --no-ssh-key)
	# One implementation of Gateway API: each of the two excludes the other.
	if [[ $MESH == istio ]]; then
		arguments+=(--enable-azure-service-mesh)
	else
		arguments+=(--enable-app-routing-istio)
	fi
	if [[ -n $AKS_VERSION ]]; then arguments+=(--kubernetes-version "$AKS_VERSION"); fi
	# AKS Automatic sets the rest itself: the network, Entra, the nodes and their upgrades.
	if [[ $AKS_SKU == base ]]; then
		arguments+=(
			--tier "$AKS_TIER"
			--network-plugin azure --network-plugin-mode overlay --network-dataplane cilium
			--enable-oidc-issuer --enable-workload-identity
			--enable-aad --enable-azure-rbac --disable-local-accounts
			--node-vm-size "$AKS_NODE_SIZE" --node-count "$AKS_NODES_MIN"
			--enable-cluster-autoscaler --min-count "$AKS_NODES_MIN" --max-count "$AKS_NODES_MAX"
			--auto-upgrade-channel patch --node-os-upgrade-channel NodeImage
		)
		# shellcheck disable=SC2206 # one word for each zone
		if [[ $AKS_ZONES != none ]]; then arguments+=(--zones $AKS_ZONES); fi
	fi
	arguments+=(
		--enable-azure-monitor-metrics --azure-monitor-workspace-resource-id "$METRICS_ID"
		--workspace-resource-id "$LOGS_ID"
	)
	# az itself adds the add-on to AKS Automatic, and refuses it twice.
	if [[ $AKS_SKU == base ]]; then arguments+=(--enable-addons monitoring); fi
	run az aks create "${cluster[@]}" "${arguments[@]}" # never empty
}

# connect_monitors: az connects the cluster to the workspaces after it has created it, and may have been stopped between.
connect_monitors() {
	local rules
	rules=$(look az rest --method get \
		--url "$CLUSTER_ID/providers/Microsoft.Insights/dataCollectionRuleAssociations?api-version=2022-06-01" \
		--query 'value[].properties.dataCollectionRuleId' --output tsv)
	if [[ $rules != *MSProm-* ]]; then
		step "connecting the metrics"
		run az aks update "${cluster[@]}" --enable-azure-monitor-metrics --azure-monitor-workspace-resource-id "$METRICS_ID" # never empty
	fi
	if [[ $rules != *MSCI-* ]]; then
		step "connecting the logs"
		run az aks disable-addons "${cluster[@]}" --addons monitoring # never empty; az connects only what it enables
		run az aks enable-addons "${cluster[@]}" --addons monitoring --workspace-resource-id "$LOGS_ID" # never empty
	fi
}

give_roles() {
	step "roles: the nodes pull from the registry, and you administer the cluster"
	ask KUBELET_ID az aks show --resource-group "$AKS_GROUP" --name "$AKS_CLUSTER" \
		--query identityProfile.kubeletidentity.objectId --output tsv
	# This is what --attach-acr does, but it can be repeated after az was stopped.
	assign "$KUBELET_ID" ServicePrincipal AcrPull "$REGISTRY_ID"
	if [[ -z $AKS_ADMIN ]]; then
		ask AKS_ADMIN az ad signed-in-user show --query id --output tsv
	fi
	assign "$AKS_ADMIN" "$AKS_ADMIN_TYPE" 'Azure Kubernetes Service RBAC Cluster Admin' "$CLUSTER_ID"
}

# make_identity: service-a's identity in Entra, without a secret. It has no role.
make_identity() {
	local identity=(--resource-group "$AKS_GROUP" --name "$AKS_CLUSTER-service-a") credential=''
	step "identity of service-a"
	if ! exists az identity show "${identity[@]}"; then # never empty
		run az identity create "${identity[@]}" --location "$AKS_LOCATION" # never empty
	fi
	ask IDENTITY_CLIENT_ID az identity show "${identity[@]}" --query clientId --output tsv # never empty
	ask ISSUER az aks show --resource-group "$AKS_GROUP" --name "$AKS_CLUSTER" --query oidcIssuerProfile.issuerUrl --output tsv
	if ! ((dry_run)); then
		credential=$(look az identity federated-credential list --resource-group "$AKS_GROUP" --identity-name "$AKS_CLUSTER-service-a" \
			--query "[?name=='service-a' && issuer=='$ISSUER'].id" --output tsv)
	fi
	if [[ -n $credential ]]; then return; fi
	run az identity federated-credential create --resource-group "$AKS_GROUP" --identity-name "$AKS_CLUSTER-service-a" \
		--name service-a --issuer "$ISSUER" --subject "system:serviceaccount:$namespace:service-a" \
		--audiences api://AzureADTokenExchange
}

# make_rules: the deployment's name contains a checksum of the rules, so that they are deployed again when they change.
make_rules() {
	local sum deployment=() parameters=() state
	step "alert rules"
	sum=$(cksum <deploy/azure/rules.json)
	deployment=(--resource-group "$AKS_GROUP" --name "tandem-rules-${sum%% *}")
	look_up state az deployment group show "${deployment[@]}" --query properties.provisioningState # never empty
	case $state in
		'') ;;
		Succeeded) return ;;
		Failed | Canceled) say "their last deployment is $state; repeating it" ;;
		*)
			say "their deployment is $state; waiting"
			run az deployment group wait "${deployment[@]}" --created --interval 5 # never empty
			return
			;;
	esac
	parameters=("workspaceId=$METRICS_ID" "clusterId=$CLUSTER_ID" "clusterName=$AKS_CLUSTER")
	run az deployment group create "${deployment[@]}" --template-file deploy/azure/rules.json --parameters "${parameters[@]}" # never empty
}

get_credentials() {
	local tries=60
	step "credentials for kubectl"
	run az aks get-credentials --resource-group "$AKS_GROUP" --name "$AKS_CLUSTER" --overwrite-existing
	run kubelogin convert-kubeconfig --login azurecli --context "$AKS_CLUSTER"
	if ((dry_run)); then
		echo "until kubectl --context $AKS_CLUSTER --namespace $namespace get deployments; do sleep 10; done # a role takes effect within 5 minutes"
		return
	fi
	until in_cluster get deployments >/dev/null 2>"$work/errors"; do
		((--tries)) || fail "the cluster refuses you: $(tail -1 "$work/errors"); does $AKS_ADMIN need a role on it?"
		if ((tries == 59)); then say "waiting for the role, which takes up to 5 minutes"; fi
		sleep 10
	done
}

in_cluster() { kubectl --context "$AKS_CLUSTER" --namespace "$namespace" "$@"; }

# kustomization prints the overlay with the images and values of this cluster.
kustomization() {
	local overlay=aks
	if [[ $MESH == istio ]]; then overlay=aks-istio; fi
	cat <<KUSTOMIZATION
resources: [../../deploy/overlays/$overlay]
components: [../../deploy/components/workload-identity]
images:$images
patches:$(patches)
KUSTOMIZATION
}

patches() {
	# Without them, in --deploy-only, the ServiceAccount and the namespaces are not applied.
	if ((deploy_only)); then
		echo ' []'
		return
	fi
	cat <<PATCHES

  - target: { kind: ServiceAccount, name: ^service-a$ }
    patch: |
      - { op: replace, path: /metadata/annotations/azure.workload.identity~1client-id, value: $IDENTITY_CLIENT_ID }
PATCHES
	if [[ $MESH == istio ]]; then
		cat <<PATCHES
  - target: { kind: Namespace, labelSelector: istio.io/rev }
    patch: |
      - { op: replace, path: /metadata/labels/istio.io~1rev, value: $MESH_REVISION }
PATCHES
	fi
}

deploy() {
	local manifests
	step "deploying"
	if [[ $MESH == istio ]] && ! ((deploy_only)); then
		ask MESH_REVISION az aks show --resource-group "$AKS_GROUP" --name "$AKS_CLUSTER" \
			--query 'max(serviceMeshProfile.istio.revisions)' --output tsv
	fi
	if ((dry_run)); then
		printf 'mkdir -p out/aks\ncat >out/aks/kustomization.yaml <<KUSTOMIZATION\n%s\nKUSTOMIZATION\n' "$(kustomization)"
		echo "bin/kustomize build out/aks | scripts/rollout.sh $AKS_CLUSTER"
		return
	fi
	mkdir -p out/aks
	kustomization >out/aks/kustomization.yaml
	manifests=$(bin/kustomize build out/aks)
	if ((deploy_only)); then manifests=$(writable <<<"$manifests"); fi
	scripts/rollout.sh "$AKS_CLUSTER" <<<"$manifests"
}

# writable prints those of the manifests that the role "Azure Kubernetes Service RBAC Writer" for the namespace may apply. It
# may not apply the namespace, nor custom resources, such as the gateway: make aks-up does, and applies the ServiceAccounts, which
# name an identity that this role cannot look up.
writable() {
	awk '
		function flush() { if (kind ~ /^(ConfigMap|Deployment|HorizontalPodAutoscaler|NetworkPolicy|PodDisruptionBudget|Service)$/) printf "---\n%s", text; text = kind = "" }
		/^---$/ { flush(); next }
		/^kind: / { kind = $2 }
		{ text = text $0 "\n" }
		END { flush() }
	'
}

# deploy_or_roll_back returns to the revisions before the deployment if it fails or calls fail. kubectl rollout undo, not the
# digests of before: a revision also has its settings, as ConfigMaps are named by their contents. Policies stay new.
deploy_or_roll_back() {
	# Not local: the trap reads it after this function has ended.
	revisions_before=$(revisions) || fail "the revisions of the Deployments cannot be read, see above, so nothing was deployed: it could not be rolled back"
	trap 'roll_back "$revisions_before"; rm -rf "$work"' EXIT
	deploy
	check_calls
	trap 'rm -rf "$work"' EXIT
}

revisions() {
	in_cluster get deployments --output \
		'jsonpath={range .items[*]}{.metadata.name} {.metadata.annotations.deployment\.kubernetes\.io/revision}{"\n"}{end}'
}

# roll_back REVISIONS: a line for each Deployment, its name and revision. In a trap, too, the first command that fails ends the
# script, so each is checked: what can be rolled back is.
roll_back() {
	local current deployment revision undone='' failed=''
	if [[ -z $1 ]]; then
		say "nothing was deployed before, so there is nothing to roll back to"
		return
	fi
	current=$(revisions) || say "the revisions cannot be read, see above; rolling back every Deployment"
	while read -r deployment revision; do
		if grep -qxF "$deployment $revision" <<<"$current"; then continue; fi
		say "rolling $deployment back to revision $revision"
		if in_cluster rollout undo "deployment/$deployment" "--to-revision=$revision" </dev/null; then
			undone="$undone $deployment"
		else
			failed="$failed $deployment"
		fi
	done <<<"$1"
	for deployment in $undone; do
		in_cluster rollout status "deployment/$deployment" --timeout=600s || failed="$failed $deployment"
	done
	if [[ -n $failed ]]; then say "not rolled back, see above:$failed"; fi
}

# check_calls: a probe from a pod, and a call over each transport from here, through the gateway.
check_calls() {
	local transport tries
	step "checking calls from a pod, and from here"
	run kubectl --context "$AKS_CLUSTER" --namespace "$namespace" exec deploy/service-a --container service-a -- \
		/service probe http://service-b/health
	if ((dry_run)); then
		ask ADDRESS "${gateway_address[@]}" # never empty
		for transport in http grpc; do echo "curl --fail --retry 30 --retry-all-errors \"http://\$ADDRESS/api/data?via=$transport\""; done
		return
	fi
	tries=60
	until address=$("${gateway_address[@]}") && [[ -n $address ]]; do # never empty
		((--tries)) || fail "the gateway has no address; kubectl --context $AKS_CLUSTER --namespace $gateway_namespace describe gateway says why"
		sleep 5
	done
	for transport in http grpc; do
		tries=60
		until curl --fail --silent --show-error --max-time 10 --output /dev/null "http://$address/api/data?via=$transport" 2>"$work/errors"; do
			((--tries)) || fail "http://$address/api/data?via=$transport fails: $(tail -1 "$work/errors")"
			sleep 5
		done
	done
}

print_addresses() {
	step "done"
	cat <<ADDRESSES

The page:    http://$address
Calls:       curl 'http://$address/api/spread?via=grpc&n=300'
From a pod:  kubectl --context $AKS_CLUSTER --namespace $namespace exec deploy/service-a -- /service probe http://service-b/health
The portal:  https://portal.azure.com/#resource$CLUSTER_ID
To delete:   make aks-down
ADDRESSES
}

main
