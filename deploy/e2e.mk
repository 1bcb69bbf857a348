# The claims about a cluster, as tests; the Makefile includes this file, and lists what stands behind ##.

# The tests change the cluster while they run: always the one of KIND_CLUSTER, whatever kubectl points at just now.
TANDEM_E2E_CONTEXT ?= kind-$(or $(KIND_CLUSTER),tandem)
export TANDEM_E2E_CONTEXT TANDEM_E2E_URL E2E_ARTIFACTS

.PHONY: e2e chaos

e2e: ## prove the claims on the cluster that the pair is deployed to (RUN=TestName for some of them)
	cd deploy/e2e && GOWORK=off $(GO) test -count=1 -v -timeout 60m $(if $(RUN),-run '$(RUN)') ./...

chaos: ## run the rows of docs/reliability.md: over an hour, or FORM=short for minutes; DOC=docs/reliability.md writes its table
	@$(GO) run ./scripts/chaos $(if $(RUN),-run '$(RUN)') $(if $(filter short,$(FORM)),-short) $(if $(DOC),-doc '$(DOC)')
