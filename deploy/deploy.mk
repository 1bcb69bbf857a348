# Verbs for containers and clusters. The Makefile includes this file; make prints the texts after ##.

# Settings of the scripts, from the environment or the command line: make kind-up KIND_CLUSTER=other
export ISTIO_FILE ISTIO_IMAGES KIND_CLUSTER KIND_NODE_IMAGE KIND_PORT METRICS_SERVER OVERLAY SERVICE TRACE VERSION REVISION

.PHONY: images compose-test kind-up gateway-crds istio-up deploy status logs kind-down lint-deploy schemas

images: ## build the container image of each service
	@scripts/images.sh

compose-test: ## run both services with docker compose, and check that calls spread over three containers
	@scripts/compose-test.sh

kind-up: ## create a Kubernetes cluster on this machine (scripts/kind.sh --help lists the settings)
	@scripts/kind.sh up

gateway-crds: ## install the custom resources of Gateway API on the cluster
	@scripts/mesh.sh gateway-crds

istio-up: ## install Gateway API and Istio on the cluster, for OVERLAY=kind-istio (scripts/mesh.sh --help lists the settings)
	@scripts/mesh.sh istio-up

deploy: bin/kustomize ## build the images, deploy both services to the cluster, and wait until they run (OVERLAY=kind)
	@scripts/kind.sh deploy

status: ## show nodes, pods and Services of the cluster
	@scripts/kind.sh status

logs: ## follow the logs of all pods, also after restarts (SERVICE=service-b for one service, TRACE=ID to mark a trace)
	@scripts/logs.sh

kind-down: ## delete the cluster
	@scripts/kind.sh down

lint-deploy: bin/kustomize bin/kubeconform ## check all manifests against the schemas of Kubernetes, without a cluster
	@scripts/kubeconform.sh

schemas: ## regenerate deploy/schemas, after a new version or kind
	@scripts/schemas.sh
