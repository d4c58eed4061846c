# Sluice: what can be made. `make help` lists the targets.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

BIN := $(CURDIR)/bin
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo v0.0.0)
LDFLAGS := -X main.version=$(VERSION)

CONTROLLER_GEN := go tool -modfile=tools/go.mod controller-gen
CRD_REF_DOCS := go tool -modfile=tools/go.mod crd-ref-docs
GOLANGCI_LINT := $(BIN)/golangci-lint
GREMLINS := $(BIN)/gremlins
CLUSTER := go run ./test/cluster/cmd/cluster

DEMO_NODES ?= 3
DEMO_EXIT ?=

# The packages of our own code, as against the test harness: these run under -race.
RACE_PACKAGES := ./api/... ./cmd/... ./controllers/... ./internal/... ./nodeagent/... ./webhook/...

# The packages that decide, and parse. The tests of the last take longest, by far.
PURE_PACKAGES := internal/imageref internal/scheduling internal/policy internal/hold internal/keyring controllers/distribution/plan

##@ Use

.PHONY: demo
demo: deps build ## Show the main job on a real cluster on this machine (DEMO_NODES=3, DEMO_EXIT=1 to take it down at the end).
	go run ./test/demo --nodes=$(DEMO_NODES) $(if $(DEMO_EXIT),--exit)

.PHONY: demo-down
demo-down: ## End the cluster that `make demo` left up.
	go run ./test/demo --down

##@ Build

.PHONY: build
build: ## Build the controller and the agent into bin/.
	CGO_ENABLED=0 go build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN)/ ./cmd/...

.PHONY: deps
deps: ## Install the Debian packages and build the Kubernetes, etcd and containerd binaries that the tests and the demo run (cached outside the tree).
	$(CLUSTER) deps
	$(CLUSTER) build

##@ Check

# -count=1: the Go command does not see that a test builds our programs, and would show
# an old result for new code. Tests on clusters run two at a time, the longest first: they
# wait most of their time.
.PHONY: test
test: deps build test-gitops growth ## Run every test: unit, controllers on a real API server, agent on real containerd, end to end, each fault of `chaos` once; our own code under -race.
	KUBEBUILDER_ASSETS="$$($(CLUSTER) assets)" go test -race -count=1 -timeout 20m $(RACE_PACKAGES)
	KUBEBUILDER_ASSETS="$$($(CLUSTER) assets)" go test -count=1 -p 2 -timeout 30m ./test/e2e ./hack/... ./test/...

.PHONY: growth
growth: ## Fail if the plan's time grows with the square of the nodes.
	go test -run '^$$' -bench Growth -benchtime 1x ./controllers/distribution/plan

.PHONY: bench
bench: deps ## Print the figures that Sluice is measured by, one line each, and fail if one misses its aim (BENCH="name …" for some of them, RUNS=5).
	KUBEBUILDER_ASSETS="$$($(CLUSTER) assets)" go run ./test/bench --runs=$(or $(RUNS),5) $(BENCH)

.PHONY: scale
scale: deps ## Measure what distributions to SCALE_NODES (default 5000) simulated nodes cost the API server, etcd and the controller, and fail if a figure misses its aim (SCALE="case …" for some cases).
	KUBEBUILDER_ASSETS="$$($(CLUSTER) assets)" go run ./test/scale --nodes=$(or $(SCALE_NODES),5000) $(SCALE)

.PHONY: simulate
simulate: ## Run the plan on 10 to 10,000 simulated nodes and print the tables.
	go run ./test/simulation

.PHONY: chaos
chaos: deps ## Break one thing after another at random moments (CHAOS_ROUNDS=n; default: each fault once; SEED=n repeats a run).
	go test ./test/chaos -count=1 -timeout 4h -v -rounds=$(or $(CHAOS_ROUNDS),0) -seed=$(or $(SEED),0)

.PHONY: images
images: ## Build the container images, for amd64 and arm64, as OCI layouts in bin/images.
	go run ./hack/images --out=$(BIN)/images

.PHONY: test-gitops
test-gitops: ## Ask the libraries of Argo CD, Flux and Helm what they make of a held Deployment (the first time it builds much of Kubernetes).
	cd test/gitops && go test ./...

.PHONY: soak
soak: deps ## Edit 200 gated Deployments at random for SOAK (default 3m) while Sluice is restarted, and check the audit log (SEED=n repeats a run).
	go test ./test/gate -count=1 -timeout 4h -v -ginkgo.label-filter=soak -soak.deployments=200 -soak.duration=$(or $(SOAK),3m) -soak.seed=$(or $(SEED),0)

.PHONY: fuzz
fuzz: ## Run the fuzz targets for FUZZTIME seconds all together (default 60), each with FUZZWORKERS workers (default 2).
	./hack/fuzz.sh $(or $(FUZZTIME),60) $(or $(FUZZWORKERS),2)

.PHONY: vulncheck
vulncheck: ## Fail if our code calls what has a known vulnerability, unless hack/vulncheck/accepted.yaml has the reason; say "NOT CHECKED" where vuln.go.dev is out of reach.
	go run ./hack/vulncheck

.PHONY: mutate
mutate: $(GREMLINS) ## Break the pure packages in one place at a time and fail if their tests do not notice, unless hack/mutate/survivors.yaml has the reason (takes hours; PACKAGE=internal/policy for one).
	go run ./hack/mutate --gremlins=$(GREMLINS) $(or $(PACKAGE),$(PURE_PACKAGES))

$(GREMLINS): tools/mutation/go.mod tools/mutation/go.sum
	@mkdir -p $(BIN)
	go build -modfile=tools/mutation/go.mod -o $@ github.com/go-gremlins/gremlins/cmd/gremlins

.PHONY: lint
lint: $(GOLANGCI_LINT) ## Run golangci-lint, which vets too, in each module that has code of ours.
	for module in $$(git ls-files '*go.mod' | xargs dirname); do \
		if git ls-files --error-unmatch -- "$$module/*.go" >/dev/null 2>&1; then (cd $$module && $(GOLANGCI_LINT) run ./...); fi; done

$(GOLANGCI_LINT): tools/lint/go.mod tools/lint/go.sum
	@mkdir -p $(BIN)
	go build -modfile=tools/lint/go.mod -o $@ github.com/golangci/golangci-lint/v2/cmd/golangci-lint

.PHONY: generate
generate: ## Regenerate deepcopy, apply configurations, CRDs, RBAC, the chart's copies of them, config/ and the references of the API and the metrics.
	rm -rf api/applyconfiguration api/v1alpha1/zz_generated.*.go config/crd/*.yaml # what nothing makes any more goes
	$(CONTROLLER_GEN) object:headerFile=hack/boilerplate.go.txt applyconfiguration:headerFile=hack/boilerplate.go.txt \
		crd:generateEmbeddedObjectMeta=false paths=./api/v1alpha1 output:crd:dir=config/crd
	$(CONTROLLER_GEN) rbac:roleName=sluice-controller paths=./controllers/... paths=./webhook/... output:rbac:dir=config/rbac
	./hack/chart-sync.sh
	$(CRD_REF_DOCS) --source-path=api/v1alpha1 --config=hack/api-reference.yaml --renderer=markdown \
		--output-path=docs/api.md --log-level=ERROR
	go run ./hack/metrics 'Controller=controllers,webhook' 'Agent=nodeagent' >docs/metrics.md

.PHONY: verify
verify: generate lint ## Fail when something generated, formatted or tidied differs from what is committed, or the linter complains.
	./hack/verify.sh

##@ Help

.PHONY: help
help: ## List the targets.
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} /^[a-z-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
