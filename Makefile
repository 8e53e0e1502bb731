# What people and CI run. `make help` lists it. Nothing here writes outside the checkout and /tmp, besides the Debian
# packages of requirements/debian.txt, which are installed when root and missing.

PYTHON ?= python3
BIN := .venv/bin
ONLY ?= *
# Programs that requirements/debian.sh unpacked rather than installed.
export PATH := $(PATH):/usr/sbin:/sbin:$(CURDIR)/build/debian/usr/bin:$(CURDIR)/build/debian/usr/sbin
# One import of each package is enough for all the processes that the tests start.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup debian test unit system engines newer lint bench demo lock clean
.DELETE_ON_ERROR:

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

setup: debian .venv/.ready ## .venv with pinned packages; Debian packages if root

# Without root this only says what is missing: each test that needs it then says so again and is skipped.
debian:
	@PYTHON=$(PYTHON) requirements/debian.sh || test "$$(id -u)" != 0

.venv/.python: | debian
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "mica needs Python 3.11 or newer.")'
	$(PYTHON) -m venv .venv
	@touch $@

.venv/.packages: requirements/dev.lock .venv/.python
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.lock
	@touch $@

.venv/.ready: pyproject.toml .venv/.packages
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

test: setup ## everything CI runs: linters, unit, system and engine tests
	$(BIN)/pytest

unit: setup ## the fast tests: no root, no servers
	$(BIN)/pytest -m "not system and not engines"

system: setup ## tests with root, FUSE, overlayfs, namespaces
	$(BIN)/pytest -m system

engines: setup ## tests with real registries, servers and engines
	$(BIN)/pytest -m engines

newer: setup ## the engine tests that a newer Debian's engines can run too, in a system unpacked below build/
	$(BIN)/pytest -m newer

lint: setup ## ruff, mypy, order of imports
	$(BIN)/pytest tests/test_linters.py tests/test_layers.py

bench: setup ## benchmarks; ONLY=glob chooses rows
	$(BIN)/python -m benchmarks.run --only '$(ONLY)'

demo: setup ## a real image is published, mounted lazily and run
	$(BIN)/python -m demo.demo

lock: .venv/.python ## pin requirements/*.in anew, with hashes
	test -x build/lock/bin/uv || { $(PYTHON) -m venv build/lock && build/lock/bin/pip install --quiet uv; }
	for name in runtime dev; do \
	  UV_CUSTOM_COMPILE_COMMAND='make lock' build/lock/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 \
	    --generate-hashes --no-annotate --no-emit-index-url --output-file requirements/$$name.lock requirements/$$name.in || exit 1; \
	done

clean: ## remove what this file made
	rm -rf .venv build src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
