# Verbs for AKS. The Makefile includes this file; make prints the texts after ##.

# Settings of the scripts, from the environment or the command line: make aks-up MESH=istio
export AKS_ENV AKS_GROUP AKS_LOCATION AKS_CLUSTER AKS_REGISTRY AKS_SKU AKS_TIER AKS_VERSION AKS_NODE_SIZE AKS_NODES_MIN
export AKS_NODES_MAX AKS_ZONES AKS_ADMIN AKS_ADMIN_TYPE MESH IMAGES RELEASE RELEASE_IMAGES

.PHONY: aks-up aks-deploy aks-down

aks-up: bin/kustomize ## create an AKS cluster and deploy both services to it (ARGS=--dry-run prints the commands, ARGS=--help the settings)
	@scripts/aks/up.sh $(ARGS)

aks-deploy: bin/kustomize ## build the images, deploy them to the cluster of make aks-up, and roll back if calls fail
	@scripts/aks/up.sh --deploy-only $(ARGS)

aks-down: ## delete what make aks-up created (ARGS=--help)
	@scripts/aks/down.sh $(ARGS)
