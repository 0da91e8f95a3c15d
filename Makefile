# Two targets matter to a newcomer: `make demo` and `make test`.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup demo test build unit race lint law gen check runtime integration vm bench fuzz image cover clean

export PATH := $(PATH):/usr/local/go/bin
export CGO_ENABLED ?= 0
export GOFLAGS ?= -buildvcs=false
CROFT := go run ./cmd/croft
TOOL := go tool -modfile=internal/tools/go.mod
FUZZTIME ?= 30s
RUNTIME := $(CURDIR)/build/runtime
# Pictures of every page, for whoever looks at a CI run.
SCREENSHOTS := $(CURDIR)/build/screenshots
GO_RUNTIME = GOWORK=off GOFLAGS="-trimpath -buildvcs=false" go build -ldflags="-s -w -buildid=" -o $(RUNTIME)/

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## install what a bare Debian 12 lacks
	@./setup.sh

demo: setup ## a box that earns: image, QEMU, chain, relay, a tenant's lease (CHECK=1: leave when seen)
	$(CROFT) demo $(if $(CHECK),--check)

test: setup ## all that CI runs: unit, law, integration, vm; goes on after a failure and names it at the end
	@mkdir -p build; failed=; for part in unit law integration vm; do \
		echo "== $$part"; $(MAKE) --no-print-directory $$part 2>&1 | tee build/test-$$part.log || failed="$$failed $$part"; \
	done; \
	for part in $$failed; do grep -hE '^ *--- FAIL|^panic: |_test\.go:[0-9]+: |^FAIL.+/' build/test-$$part.log | cut -c 1-300 | head -n 12 || true; done; \
	if [ -n "$$failed" ]; then echo "== failed:$$failed; all they said is in build/test-*.log"; exit 1; fi; echo "== all parts passed"

build: ## build every program into build/
	go build -trimpath -o build/ ./cmd/...

unit: ## unit tests
	go test ./...

race: ## unit tests under the race detector
	CGO_ENABLED=1 go test -race ./...

lint: ## linters, each named in .golangci.yml
	$(TOOL) golangci-lint run

law: ## import law and golden module lists
	go test -count=1 ./internal/law/...

gen: ## regenerate generated code
	go generate ./...

check: ## what a change must pass: gen leaves no difference, lint, law, race
	@before=$$(git status --porcelain; git diff); $(MAKE) --no-print-directory gen; \
	[ "$$before" = "$$(git status --porcelain; git diff)" ] || { echo "make gen changed files: commit them"; exit 1; }
	$(MAKE) --no-print-directory lint law race

runtime: ## the programs that integration tests run, into build/runtime
	cd images/runtime && $(GO_RUNTIME) ./containerd-shim-runc-v2 ./croft-containerd ./croft-rotlog
	cd images/runtime/croft-runsc && $(GO_RUNTIME) .
	go build -o $(RUNTIME)/ ./cmd/croft-chaind

integration: runtime ## tests with real neighbours (build tag integration)
	set -x; export CROFT_RUNTIME=$(RUNTIME) CROFT_SCREENSHOTS=$(SCREENSHOTS); go test -tags integration -count=1 -timeout 30m \
		$$(grep -rlE --include='*_test.go' --exclude-dir=runtime '^//go:build .*\bintegration\b|dbtest\.' . | xargs -n1 dirname | sort -u); \
		cd images/runtime && go test -tags integration -count=1 ./... && cd croft-runsc && go test -count=1 ./...
	cd images/gokrazy && go test -count=1 ./...

vm: ## boot, faults, power cuts and slots in QEMU (build tag vm)
	CROFT_SCREENSHOTS=$(SCREENSHOTS) go test -tags vm -count=1 -timeout 70m -p 1 -parallel 2 -v ./internal/rig/... ./internal/vmtest/...

bench: runtime ## benchmarks, in QEMU too; docs/benchmarks.md holds the figures
	CROFT_RUNTIME=$(RUNTIME) go test -tags integration -run '^$$' -bench . -benchmem -timeout 40m -p 1 ./agent/hosting ./agent/sandbox
	go test -tags vm -run '^$$' -bench . -benchmem -timeout 90m -p 1 ./...

fuzz: ## each fuzz target for FUZZTIME
	@grep -rHoE --include='*_test.go' '^func Fuzz[A-Za-z0-9_]+' . | sed 's/:func / /' | while read -r file name; do \
		echo "== $$name"; go test -run '^$$' -fuzz "^$$name\$$" -fuzztime $(FUZZTIME) "$$(dirname "$$file")" </dev/null; done

image: ## build the disk image into build/
	$(CROFT) image build --board uefi-x86 --out build

cover: ## test coverage into build/cover.html
	@mkdir -p build
	go test -coverprofile=build/cover.out ./...
	go tool cover -html=build/cover.out -o build/cover.html
	go tool cover -func=build/cover.out | tail -n 1

clean: ## remove build/
	rm -rf build
