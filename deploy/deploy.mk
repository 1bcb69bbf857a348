# Verbs for containers and clusters; the Makefile includes this file, and lists what stands behind ##.

# Set these in the environment or on the command line: make kind-up KIND_CLUSTER=other
export KIND_CLUSTER KIND_NODE_IMAGE KIND_PORT METRICS_SERVER OVERLAY SERVICE VERSION REVISION

.PHONY: images compose-test kind-up deploy status logs kind-down lint-deploy schemas

images: ## build the container images of both services
	@scripts/images.sh

compose-test: ## run the pair under docker compose, and check that calls spread over three service-b
	@scripts/compose-test.sh

kind-up: ## make a Kubernetes cluster on this machine (scripts/kind.sh --help lists its settings)
	@scripts/kind.sh up

deploy: bin/kustomize ## build, load and apply the pair to the cluster, and wait until it runs (OVERLAY=kind)
	@scripts/kind.sh deploy

status: ## what runs where on the cluster
	@scripts/kind.sh status

logs: ## follow the pods' logs (SERVICE=service-b for one service's)
	@scripts/kind.sh logs

kind-down: ## delete the cluster
	@scripts/kind.sh down

lint-deploy: bin/kustomize bin/kubeconform ## check all manifests against Kubernetes' schemas, without a cluster
	@scripts/kubeconform.sh

schemas: ## write deploy/schemas anew, after a new version or kind
	@scripts/schemas.sh

bin/kustomize bin/kubeconform: bin/%: scripts/tools/%/go.mod scripts/tools/%/go.sum
	@echo "building $* (once; takes a minute)"
	@cd $(<D) && GOWORK=off GOBIN=$(CURDIR)/bin go install tool
	@touch $@
