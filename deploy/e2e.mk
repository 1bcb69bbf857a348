# The tests on a cluster. The Makefile includes this file; make prints the texts after ##.

# The tests change the cluster, so they use the one of KIND_CLUSTER, not the current context of kubectl.
TANDEM_E2E_CONTEXT ?= kind-$(or $(KIND_CLUSTER),tandem)
export TANDEM_E2E_CONTEXT TANDEM_E2E_URL E2E_ARTIFACTS

# These packages of the module need no cluster, so make test runs them.
TESTED += deploy/e2e/azure/arm deploy/e2e/chaos deploy/e2e/load deploy/e2e/page deploy/e2e/rules deploy/e2e/safeguards

test: bin/kustomize # deploy/e2e/safeguards renders the manifests

# The tests that make e2e-istio runs: those of the mesh and the gateway, and those whose claims sidecars might break.
IN_MESH := ^(TestMesh|TestGateway|TestHTTP|TestFaults|TestGRPC_Headless|TestScaling|TestReliability_(ServiceA|ServiceB|BothServices)Updated|TestReliability_(PodDeleted|ContainerKilled))

# The tests that make e2e-aks runs: those that need neither overlays/kind nor a node that is a container.
IN_AKS := ^Test(GRPC_|HTTP_|Names_|Namespace_|Policies_|Ports_|Probe_|Readiness_|Scaling_|Zones_|Reliability_(BothServicesUpdated|PodDeleted|ServiceBScaledToZero))

.PHONY: e2e e2e-istio e2e-aks chaos screenshots aks-test

e2e: bin/kustomize ## run the tests on the cluster to which make deploy deployed (RUN=TestName for some of them, SKIP=TestName for the others)
	cd deploy/e2e && GOWORK=off $(GO) test -count=1 -v -timeout 60m $(if $(RUN),-run '$(RUN)') $(if $(SKIP),-skip '$(SKIP)') .

e2e-istio: ## run the tests of the mesh and the gateway, after make istio-up and make deploy OVERLAY=kind-istio
	@TANDEM_E2E_MESH=1 $(MAKE) --no-print-directory e2e RUN='$(or $(RUN),$(IN_MESH))'

# The tests scale and break pods by fault injection: autoscalers would interfere, and overlays/aks has it off.
e2e-aks: ## run the tests on the cluster of make aks-up (TANDEM_E2E_CONTEXT=tandem TANDEM_E2E_URL=http://ADDRESS); make aks-deploy brings the autoscalers back
	@test -n "$$TANDEM_E2E_URL" || { echo "set TANDEM_E2E_CONTEXT and TANDEM_E2E_URL: they change and break what runs there" >&2; exit 2; }
	kubectl --context "$$TANDEM_E2E_CONTEXT" --namespace tandem delete horizontalpodautoscalers --all
	kubectl --context "$$TANDEM_E2E_CONTEXT" --namespace tandem set env deployments --all FAULTS=on
	@$(MAKE) --no-print-directory e2e RUN='$(or $(RUN),$(IN_AKS))'; status=$$?; \
	kubectl --context "$$TANDEM_E2E_CONTEXT" --namespace tandem set env deployments --all FAULTS-; exit $$status

chaos: ## run the rows of docs/reliability.md: over an hour, or FORM=short for 20 minutes; DOC=docs/reliability.md writes its table
	@$(GO) run ./deploy/e2e/chaos $(if $(RUN),-run '$(RUN)') $(if $(filter short,$(FORM)),-short) $(if $(DOC),-doc '$(DOC)')

screenshots: ## take the pictures of the page in docs/img, after make kind-up deploy (PAGE_URL=http://HOST/ for another service-a); needs Chromium
	@$(GO) run ./deploy/e2e/page/screenshots -url '$(or $(PAGE_URL),http://localhost:$(or $(KIND_PORT),8080)/)' -out docs/img

# Without an az that the tests find, they are skipped, and building their tools would take minutes for nothing.
AZ := $(TANDEM_AZURE_INSTALL)$(wildcard out/azure-cli-*/complete $(addsuffix /az,$(subst :, ,$(PATH))))

aks-test: $(if $(AZ),bin/kustomize bin/kubelogin bin/registry) ## test scripts/aks with the real az and an Azure in memory (RUN=TestName for some; TANDEM_AZURE_INSTALL=1 installs az)
	@cd deploy/e2e && GOWORK=off $(GO) test -count=1 -v -timeout 60m -parallel 4 $(if $(RUN),-run '$(RUN)') ./azure
