# The two commands to know: `make demo` and `make test`. Each sets up .venv first, once. PYTHON=python3.12 chooses another Python.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
export OMP_WAIT_POLICY ?= PASSIVE
export TOKENIZERS_PARALLELISM ?= false
# Test files that `make test` runs at a time.
JOBS ?= 2

.DEFAULT_GOAL := help
.PHONY: help setup demo smollm2 docs notebooks test test-slow test-faults test-mutations test-versions test-peers test-gpu test-slurm check format bench bench-full pin flash clean

help: ## this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)$$/  make \1\t\2/' | expand -t 20

setup: $(READY) ## .venv with everything in requirements.txt, and this repository as an editable package

$(READY): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 10), "Python 3.10 or newer is needed: make PYTHON=python3.x"'
	$(PYTHON) -m venv $(VENV) || { echo "python has no venv here: apt install python3-venv"; rm -rf $(VENV); exit 1; }
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: $(READY) ## LU-KV on the embedded model at 20% of the cache, beside the full cache
	$(PY) run.py method=lukv budget=0.2 limit=50

smollm2: $(READY) ## fetch SmolLM2-135M-Instruct, 93 MB, for model=smollm2-135m-q4
	$(PY) scripts/fetch_smollm2.py

docs: $(READY) ## write the tables and figures of README.md and docs/ from docs/data
	$(PY) -m scripts.docs

notebooks: $(READY) ## run the notebooks and store their outputs in them
	$(PY) -m scripts.notebooks

test: $(READY) ## the tests that need nothing but this machine, in minutes
	$(PY) -m pytest -n $(JOBS) --dist loadfile

test-slow: $(READY) ## the long suites
	$(PY) -m pytest -m slow --timeout 3600

test-faults: $(READY) ## kills at every write, 100 000 fuzzed inputs, a soak: half an hour (docs/reliability.md)
	$(PY) -m pytest -m faults tests/faults --timeout 3600 -s

test-mutations: $(READY) ## before a release: do the tests see the faults of tests/mutations/faults.yaml, put in one at a time?
	$(PY) -m tests.mutations

test-versions: ## the backend under the oldest supported and the newest transformers, each in an environment of its own
	bash scripts/test_transformers_versions.sh

test-peers: $(READY) ## against kvpress and lm-evaluation-harness in environments of their own (.venv-peers, .venv-harness)
	bash scripts/peers_venv.sh
	$(PY) -m pytest -m peers tests/peers --timeout 1800

test-gpu: $(READY) ## what needs a CUDA device
	$(PY) -m pytest -m gpu

test-slurm: $(READY) ## against a real Slurm on this machine (Debian or Ubuntu, root)
	$(PY) -m pytest -m slurm

check: $(READY) ## lint, format and types
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

format: $(READY) ## let ruff write what it can
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

bench: $(READY) ## measure on this machine and write docs/benchmarks.md, in about 5 minutes
	$(PY) -m benchmarks

bench-full: $(READY) ## the same with the large cases
	$(PY) -m benchmarks --full

pin: ## write requirements.txt anew from pyproject.toml (needs uv)
	bash scripts/pin.sh

flash: $(READY) ## flash-attn, for attention=flash_attn (needs nvcc)
	$(PY) -m pip install --no-build-isolation -e '.[flash]'

clean: ## remove .venv and caches; runs/ stays
	rm -rf $(VENV) .venv-* build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
