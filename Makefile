# Requires Python 3.11 or newer, git and make. PYTHON=... selects another Python; only 3.11 has wheels of Procgen.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
READY := .venv/.ready

.PHONY: setup demo test pytest lint style types docs lock clean

setup: $(READY)

$(READY): requirements.lock pyproject.toml | $(BIN)/uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --requirement requirements.lock --editable .
	@touch $@

$(BIN)/uv:
	@test -n "$(PYTHON)" || { echo "make: found no Python 3.11 or newer with venv; PYTHON=... names one"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $$(grep -o '^uv==[^ ]*' requirements.lock)

# The whole path, from a recorded game to a playable world.
demo: setup
	$(BIN)/vwm demo

# Types are checked beside the tests: by one core, for a minute.
test: style
	@$(MAKE) --no-print-directory --jobs 2 types pytest

# One worker a core, and a file's tests in one worker, since they share fixtures.
pytest: setup
	$(BIN)/pytest --numprocesses logical --maxprocesses 8 --dist loadfile

lint: style types

style: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo

types: setup
	$(BIN)/mypy

# The documentation site, in site/; broken links are errors.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict
	@echo "site/index.html"

# Keeps locked versions that still satisfy pyproject.toml; `make lock UPGRADE=--upgrade` takes the newest.
lock: | $(BIN)/uv
	$(BIN)/uv pip compile pyproject.toml --quiet --all-extras --universal --python-version 3.11 $(UPGRADE) \
		--no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" --output-file requirements.lock
	@! grep -nE '://|--(extra-)?index-url|--find-links' requirements.lock

clean:
	rm -rf build dist site .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	find vwm tests tools -name __pycache__ -prune -exec rm -rf {} +
