# Targets run in a virtual environment of the project: only python3 and make are required.
PYTHON ?= python3
VENV ?= .venv
DEMO ?= runs/demo
WORKERS ?= 2
BIN := $(VENV)/bin
# Tests have a cache of their own; runs use that of the user, as every command does.
test test-all test-newest faults: export KD_JAX_CACHE ?= $(CURDIR)/.cache

# The newest installed Python, for the newest JAX; pyenv's shims may be on the PATH but not work.
NEWEST ?= $(shell for python in python3.14 python3.13 python3.12 \
	  $$(ls -d $${PYENV_ROOT:-$$HOME/.pyenv}/versions/3.1[2-9]*/bin/python 2>/dev/null | sort -rV); \
	do $$python -c '' 2>/dev/null && echo $$python && break; done)

.PHONY: demo test test-all test-newest faults lint types format docs clean

demo: $(VENV)/installed
	$(BIN)/python -m experiments.digits --preset=demo --workdir=$(DEMO)

# The gate of every change.
test: $(VENV)/installed lint types
	$(BIN)/python -m pytest -m 'not slow' --numprocesses $(WORKERS) --dist worksteal

# All tests, for releases. The test of the HTML report needs chromium and chromedriver.
test-all: $(VENV)/installed lint types
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal
	$(MAKE) test-newest

# The gate's tests with the newest Python, jax, flax, orbax and numpy.
test-newest:
ifeq ($(NEWEST),)
	@echo "skipped: the newest JAX needs Python 3.12 or newer, and there is none on the PATH"
else
	$(MAKE) $(VENV)-newest/installed PYTHON=$(NEWEST) VENV=$(VENV)-newest
	KD_JAX_CACHE=$(KD_JAX_CACHE)/newest $(VENV)-newest/bin/python -m pytest -m 'not slow' \
	  --numprocesses $(WORKERS) --dist worksteal
endif

# All cases of the fault tests; `make test` runs some of them.
faults: $(VENV)/installed
	$(BIN)/python -m pytest tests/faults --numprocesses $(WORKERS) --dist worksteal

lint: $(VENV)/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/installed
	$(BIN)/mypy

format: $(VENV)/installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The documentation site, in build/docs; warnings are errors.
docs: $(VENV)/installed-docs
	$(BIN)/python -m mkdocs build --strict

clean:
	rm -rf $(VENV) $(VENV)-newest .cache build *.egg-info

$(VENV)/installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("kd_jax needs Python 3.11 or newer, and PYTHON=$(PYTHON) is " + sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --no-deps 'jax2onnx>=0.17.1'
	touch $@

$(VENV)/installed-docs: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	touch $@
