# A virtual environment of our own, so that python3 and make are all that is assumed.
PYTHON ?= python3
VENV ?= .venv
DEMO ?= runs/demo
WORKERS ?= 2
BIN := $(VENV)/bin
export KD_JAX_CACHE ?= $(CURDIR)/.cache

.PHONY: demo test faults lint types format clean

demo: $(VENV)/installed
	$(BIN)/python -m experiments.digits --preset=demo --workdir=$(DEMO)

test: $(VENV)/installed lint types
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal

# Every fault in all its cases, of which `make test` has some: about half an hour.
faults: $(VENV)/installed
	KD_JAX_FAULTS=whole $(BIN)/python -m pytest tests/faults --numprocesses $(WORKERS) --dist worksteal

lint: $(VENV)/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/installed
	$(BIN)/mypy

format: $(VENV)/installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) .cache build *.egg-info

$(VENV)/installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("kd_jax needs Python 3.11 or newer, and PYTHON=$(PYTHON) is " + sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@
