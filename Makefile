# make without a verb lists the verbs.

GO      ?= go
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
# FUZZTIME is how many inputs each fuzz target gets in make test: a few seconds' worth.
FUZZTIME ?= 20000x
# The scripts run the same Go.
export GO

MODULES  := $(shell sed -n 's|^[[:space:]]*\./||p' go.work)
SERVICES  = $(shell scripts/services.sh)
# deploy/e2e needs a cluster: make e2e runs it.
TESTED   := $(filter-out deploy/e2e,$(MODULES))
# grpcnotrace: without gRPC's /debug pages, whose templates prevent the linker from dropping unused methods.
# nethttpomithttp2: without net/http's HTTP/2, which plaintext HTTP/1.1 does not use; gRPC has its own.
BUILD    := -trimpath -tags grpcnotrace,nethttpomithttp2 -ldflags "-s -w -X example.com/tandem/kit/instance.version=$(VERSION)"
# The race detector needs a C compiler.
RACE      = $(if $(filter 1,$(shell $(GO) env CGO_ENABLED)),-race)

.DEFAULT_GOAL := help
include deploy/deploy.mk deploy/e2e.mk deploy/aks.mk
.PHONY: help doctor run build test drill fuzz bench check lint fmt generate names clean

help: ## list the verbs
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

doctor: ## list the tools that the verbs need, with their versions
	@scripts/doctor.sh

run: ## build the services, run them on this machine, and show one call over each transport
	@mkdir -p bin && $(GO) build -o bin/run ./scripts/run && exec bin/run

build: ## build each service as it is released: bin/SERVICE, stripped, with a version
	@for s in $(SERVICES); do \
		echo "building bin/$$s $(VERSION)"; \
		$(GO) build -C $$s $(BUILD) -o ../bin/$$s . || exit 1; \
	done

check: lint test ## run lint and test: before every push

test: ## run all tests that need no cluster, with the race detector, then make fuzz
	@$(if $(RACE),,echo "no C compiler found, so the race detector is off; install gcc or clang";) \
	for m in $(TESTED); do \
		echo "testing $$m"; \
		(cd $$m && GOWORK=off $(GO) test $(RACE) -shuffle=on ./...) || failed="$$failed $$m"; \
	done; \
	if [ -n "$$failed" ]; then echo "tests failed in:$$failed" >&2; exit 1; fi
	@$(MAKE) --no-print-directory fuzz

drill: ## restart, kill, suspend and attack service-b under 50 and 200 callers on this machine: ten minutes
	@cd service-a && DRILL=full GOWORK=off $(GO) test -run '^TestDrill$$' -count=1 -timeout 40m

fuzz: ## run each fuzz target (FUZZTIME=1000000x for longer)
	@scripts/fuzz.sh $(FUZZTIME) $(TESTED)

bench: ## compare both transports with the least code that could do the same
	@$(GO) run ./scripts/bench

lint: bin/golangci-lint bin/buf bin/actionlint bin/govulncheck bin/protoc-gen-go bin/kustomize bin/kubeconform ## check the code, contract, modules, scripts, documents, manifests and workflows
	@scripts/lint.sh $(MODULES)

fmt: bin/golangci-lint bin/buf ## format Go and protobuf, and tidy every go.mod
	@for m in $(MODULES); do \
		(cd $$m && $(CURDIR)/bin/golangci-lint fmt --config $(CURDIR)/.golangci.yml && GOWORK=off $(GO) mod tidy) || exit 1; \
	done
	@bin/buf format -w proto

generate: bin/buf bin/protoc-gen-go ## generate Go from proto/, the recipe in docs/aks.md, docs/metrics.md, and the alert rules of deploy/
	@cd proto && ../bin/buf generate
	@cd service-a && GOWORK=off $(GO) test -count=1 -run '^TestMetrics_AreDocumented$$' . -update
	@cd deploy/e2e && GOWORK=off $(GO) run ./rules
	@scripts/aks/recipe.sh # last: it names a checksum of the rules

names: ## list where the project's name and module path appear
	@scripts/names.sh

clean: ## remove bin/ and out/
	rm -rf bin out

# The tools are pinned, each in a module of its own, and built when first needed. touch: go install does not change the
# time of a file that is up to date.
bin/golangci-lint bin/buf bin/actionlint bin/govulncheck bin/kustomize bin/kubeconform bin/kubelogin bin/registry: bin/%: scripts/tools/%/go.mod scripts/tools/%/go.sum
	@echo "building $* (once; golangci-lint takes minutes)"
	@cd $(<D) && GOWORK=off GOBIN=$(CURDIR)/bin $(GO) install tool
	@touch $@

bin/protoc-gen-go: scripts/tools/protoc/go.mod scripts/tools/protoc/go.sum
	@echo "building protoc-gen-go and protoc-gen-go-grpc"
	@cd $(<D) && GOWORK=off GOBIN=$(CURDIR)/bin $(GO) install tool
	@touch $@
