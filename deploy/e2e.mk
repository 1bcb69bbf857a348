# The claims about a cluster, as tests; the Makefile includes this file, and lists what stands behind ##.

# The tests change the cluster while they run: always the one of KIND_CLUSTER, whatever kubectl points at just now.
TANDEM_E2E_CONTEXT ?= kind-$(or $(KIND_CLUSTER),tandem)
export TANDEM_E2E_CONTEXT TANDEM_E2E_URL E2E_ARTIFACTS

.PHONY: e2e chaos

e2e: ## prove the claims on the cluster that the pair is deployed to (RUN=TestName for some of them)
	cd deploy/e2e && GOWORK=off go test -count=1 -v -timeout 60m $(if $(RUN),-run '$(RUN)') ./...

chaos: ## all that can happen to the pair, in full: an hour; writes out/chaos (DOC=docs/reliability.md: there too)
	@$(GO) run ./scripts/chaos $(if $(RUN),-run '$(RUN)') $(if $(DOC),-doc '$(DOC)')
