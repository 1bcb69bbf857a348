# The verbs are the manual: `make` lists them.

GO      ?= go
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
# FUZZTIME is how many inputs each fuzz target gets: some seconds' worth.
FUZZTIME ?= 20000x

MODULES := $(shell sed -n 's|^[[:space:]]*\./||p' go.work)
# The claims about a cluster need one, so they are a verb of their own.
TESTED  := $(filter-out deploy/e2e,$(MODULES))
# grpcnotrace leaves out gRPC's /debug pages, whose templates make the linker
# keep every method of the binary; nethttpomithttp2 leaves out net/http's HTTP/2,
# which plaintext HTTP/1.1 has no use for (gRPC brings its own).
BUILD   := -trimpath -tags grpcnotrace,nethttpomithttp2 -ldflags "-s -w -X example.com/tandem/kit/instance.version=$(VERSION)"
# The race detector needs a C compiler, without which cgo is off.
RACE    := $(if $(filter 1,$(shell $(GO) env CGO_ENABLED)),-race)

.DEFAULT_GOAL := help
include deploy/deploy.mk deploy/e2e.mk
.PHONY: help run build test drill fuzz bench lint fmt generate clean

help: ## list the verbs
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: ## build both services, run them on this machine and show one call over each transport
	@mkdir -p bin && $(GO) build -o bin/run ./scripts/run && exec bin/run

build: ## build bin/service-a and bin/service-b as they are shipped: stripped, with a version
	@for s in service-a service-b; do \
		echo "building bin/$$s $(VERSION)"; \
		$(GO) build -C $$s $(BUILD) -o ../bin/$$s . || exit 1; \
	done

test: ## run all tests with the race detector, then each fuzz target for some seconds
	@$(if $(RACE),,echo "no C compiler, so the race detector is off: install gcc or clang";) \
	for m in $(TESTED); do \
		echo "testing $$m"; \
		(cd $$m && GOWORK=off $(GO) test $(RACE) -shuffle=on ./...) || failed="$$failed $$m"; \
	done; \
	if [ -n "$$failed" ]; then echo "tests failed in:$$failed" >&2; exit 1; fi
	@$(MAKE) --no-print-directory fuzz

drill: ## kill, restart, stop and attack service-b under 50 and 200 callers, without a cluster: about ten minutes
	@cd service-a && DRILL=full GOWORK=off $(GO) test -run '^TestDrill$$' -count=1 -timeout 40m

fuzz: ## run each fuzz target: make fuzz FUZZTIME=1000000x for longer
	@scripts/fuzz.sh $(FUZZTIME) $(TESTED)

bench: ## compare both transports with the least code that could do the same
	@$(GO) run ./scripts/bench

lint: bin/golangci-lint bin/buf bin/actionlint bin/protoc-gen-go lint-deploy ## check code, contract, modules, generated code, scripts and manifests
	@scripts/lint.sh $(MODULES)

fmt: bin/golangci-lint bin/buf ## format Go and protobuf, and tidy every go.mod
	@for m in $(MODULES); do \
		(cd $$m && $(CURDIR)/bin/golangci-lint fmt --config $(CURDIR)/.golangci.yml && GOWORK=off $(GO) mod tidy) || exit 1; \
	done
	@bin/buf format -w proto

generate: bin/buf bin/protoc-gen-go ## generate Go from proto/
	@cd proto && ../bin/buf generate

clean: ## remove what was built
	rm -rf bin out

# The tools are pinned, each in a module of its own, and built when first needed.
# go install leaves a file alone that would not change: touch tells make it is new.
bin/golangci-lint bin/buf bin/actionlint: bin/%: scripts/tools/%/go.mod scripts/tools/%/go.sum
	@echo "building $* (once; takes a few minutes)"
	@cd $(<D) && GOWORK=off GOBIN=$(CURDIR)/bin $(GO) install tool
	@touch $@

bin/protoc-gen-go: scripts/tools/protoc/go.mod scripts/tools/protoc/go.sum
	@echo "building protoc-gen-go and protoc-gen-go-grpc"
	@cd $(<D) && GOWORK=off GOBIN=$(CURDIR)/bin $(GO) install tool
	@touch $@
