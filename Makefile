# Every chore is one command. Each sets up what it needs: Python 3.11 or newer and make are enough.

PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
PACKAGES := $(VENV)/.packages
READY := $(VENV)/.ready
KERNEL := shards/crops/kernel/libcrops.so
PEERS := .venv-peers
# Workers take tests in order of files, and from each other at the end; each makes its fixtures once.
# Three on two cores: tests that start processes or wait for a time-out leave a core idle.
WORKERS ?= 3
PYTEST := $(BIN)/python -m pytest --durations 20 --durations-min 1
# On a machine that others prepared, torch belongs to their Python, and nothing can be installed.
CHECKER := $(if $(filter file,$(origin PYTHON)),$(if $(wildcard $(READY)),$(BIN)/python,python3),$(PYTHON))
SITE := "import sysconfig; print(sysconfig.get_path('purelib'))"
# Every Ray takes calls with a token only: a run makes its own, tests and benchmarks share this one.
export RAY_AUTH_MODE ?= token
ifndef RAY_AUTH_TOKEN
export RAY_AUTH_TOKEN := $(shell od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
endif
export RAY_USAGE_STATS_ENABLED ?= 0
# Compiled modules are kept: without them every process compiles torch anew, which takes ten seconds.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup kernel fmt check test drill drill-all soak test-gpu gpu-check demo bench bench-methods bench-peers lock clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: $(READY) ## Make .venv with every pinned dependency, and compile the crop kernel

$(PACKAGES): requirements.txt
	@test -n "$(PYTHON)" || { echo "streamssl needs Python 3.11 or newer on the PATH; none was found. Install one, or name it: make setup PYTHON=/path/to/python3"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "uv>=0.5"
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --requirement requirements.txt
	@touch $@

$(KERNEL): $(wildcard shards/crops/kernel/*.[ch]) shards/crops/kernel/compile.py | $(PACKAGES)
	$(BIN)/python shards/crops/kernel/compile.py

# No isolation: an isolated build would download its own compiler, and not the one that is pinned.
$(READY): pyproject.toml $(PACKAGES) $(KERNEL)
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

kernel: $(PACKAGES) ## Compile the crop kernel anew, whatever is there
	rm -f $(KERNEL)
	$(BIN)/python shards/crops/kernel/compile.py

fmt: $(READY) ## Format the code and mend what the linter can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

check: $(READY) ## Lint, format check and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: $(READY) ## Run the tests, WORKERS=3 at a time (no GPU, no network)
	$(PYTEST) -n $(WORKERS) --dist worksteal

drill: $(READY) ## Run the drills of every change: kill things, whole runs; ONLY=ray or 'not ray'
	$(PYTEST) -n 2 --dist loadfile -m "slow and not nightly and not gpu$(if $(ONLY), and $(ONLY))" \
		--timeout 900 $(if $(SHARE),--share $(SHARE))

drill-all: $(READY) ## Run every drill and every random case, as the nightly workflow does
	$(PYTEST) -m "(slow or nightly) and not gpu" --timeout 1800 --share $(or $(SHARE),1)

soak: $(READY) ## Break a run on a local cluster for MINUTES=5, in an order that SEED=0 fixes; FAULTS="signals kills"
	$(BIN)/python -m tests.drills.soak --minutes $(or $(MINUTES),5) --seed $(or $(SEED),0) \
		$(if $(FAULTS),--faults $(FAULTS))

test-gpu: $(READY) ## Run the tests that need an NVIDIA GPU
	$(BIN)/python -m pytest -m gpu

gpu-check: ## Tests and figures of one GPU in MINUTES=8, a line of JSON a part; without make setup: PYTHON=python3
	PYTHONPATH=.$(if $(PYTHONPATH),:$(PYTHONPATH)) $(CHECKER) -m tests.gpu_check --minutes $(or $(MINUTES),8) \
		$(if $(DEVICE),--device $(DEVICE)) $(if $(DATA),--data $(DATA)) $(if $(WHEELS),--wheels $(WHEELS))

demo: $(READY) ## Made images -> shards -> Ray readers -> SwAV -> k-NN, in under five minutes
	$(BIN)/streamssl demo

bench: $(READY) ## Measure the input path on made images; BENCHMARKS.md has the other commands
	$(BIN)/python -m tests.bench.input --readers 2 --images 1024

bench-methods: $(READY) ## Train every method for MINUTES=5 of CPU and print k-NN before and after; METHODS="byol swav" TRAIN=shards TEST=shards
	$(BIN)/python -m tests.bench.methods --minutes $(or $(MINUTES),5) \
		$(if $(METHODS),--methods $(METHODS)) $(if $(TRAIN),--train $(TRAIN) --test $(TEST))

bench-peers: $(PEERS)/.ready ## Measure other loaders beside ours on made images; installs them into .venv-peers first
	$(BIN)/python -m tests.bench.peers

$(PEERS)/.ready: tests/bench/peers-requirements.txt $(READY)
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(PEERS)
	$(BIN)/uv pip install --quiet --python $(PEERS)/bin/python --no-deps --requirement tests/bench/peers-requirements.txt
	$(BIN)/python -c $(SITE) > $$($(PEERS)/bin/python -c $(SITE))/environment-of-make-setup.pth
	@touch $@

lock: ## Pin the newest versions of every dependency into requirements.txt
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --no-header \
		--no-annotate --extra s3 --extra dev --upgrade pyproject.toml --output-file requirements.txt
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --no-header --no-annotate \
		--extra s3 --extra gcs --extra cluster --constraint requirements.txt \
		pyproject.toml --output-file cluster/deploy/requirements.txt

clean: ## Remove the virtual environment and caches
	rm -rf $(VENV) $(PEERS) .pytest_cache .mypy_cache .ruff_cache build *.egg-info $(KERNEL)
