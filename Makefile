# `make demo` trains and evaluates on the starter world, `make test` checks the project.
# Both set up a virtual environment in .venv the first time, and again when pyproject.toml changes, with uv where it is
# found (`make demo UV=` does without it) and with pip otherwise.

VENV ?= .venv
PY := $(VENV)/bin/python
UV := $(shell uv --version >/dev/null 2>&1 && echo uv)
INSTALL = $(if $(UV),$(UV) pip install --python $(PY),$(PY) -m pip install --disable-pip-version-check)
# To choose a Python: make demo PYTHON=/path/to/python3

.DEFAULT_GOAL := help
.PHONY: help demo test coverage lint format bench clean

help:
	@echo "make demo      set up, then train and evaluate on the starter world (Swahili, LilT)"
	@echo "make test      set up, then run every check: format, lint, types, imports, tests"
	@echo "make coverage  run the tests, and list the lines of code that none of them runs (takes half as long again)"
	@echo "make lint      the checks without the tests"
	@echo "make bench     measure speed and memory beside open_clip, and write benchmarks/README.md (about 20 minutes)"
	@echo "make format    format the code"
	@echo "make clean     remove the virtual environment and caches (runs and results stay)"

demo: $(VENV)/.installed
	$(VENV)/bin/polyalign train --lang sw --strategy lilt

test: lint
	$(PY) -m pytest -n 2

coverage: $(VENV)/.installed-dev
	$(PY) -m pytest -n 2 --cov --cov-report=term

lint: $(VENV)/.installed-dev
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy
	$(VENV)/bin/lint-imports

bench: $(VENV)/.installed
	$(INSTALL) --quiet --editable '.[peers]'
	$(PY) -m benchmarks

format: $(VENV)/.installed-dev
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .coverage .coverage.* dist build

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/pip
	@echo "Installing polyalign and its dependencies (with PyTorch about 6 GB; some minutes the first time) ..."
	$(INSTALL) --editable .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | $(VENV)/bin/pip
	@echo "Installing polyalign and the developers' tools (with PyTorch about 6 GB; some minutes the first time) ..."
	$(INSTALL) --editable '.[dev]'
	@touch $@ $(VENV)/.installed

# pip is the last thing that is put into an environment, so an incomplete one is created again. uv needs no Python: it
# finds or downloads one.
# Each candidate is run, not only looked up, since a version manager may have a placeholder that does not start.
$(VENV)/bin/pip:
ifneq ($(UV),)
	@echo "Making $(VENV) with $$($(UV) --version)"
	@$(UV) venv --quiet --seed --allow-existing --python $(or $(PYTHON),'>=3.11') $(VENV)
else
	@for python in $(or $(PYTHON),python3 python3.13 python3.12 python3.11 python); do \
	    if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
	        echo "Making $(VENV) with $$("$$python" --version)"; \
	        "$$python" -m venv $(VENV) && exit 0; \
	        echo "$$python cannot make a virtual environment (on Debian and Ubuntu: apt install python3-venv)" >&2; \
	        exit 1; \
	    fi; \
	done; \
	echo "polyalign needs Python 3.11 or newer, and none was found." >&2; \
	echo "Install one, or name it: make demo PYTHON=/path/to/python3" >&2; \
	exit 1
endif
