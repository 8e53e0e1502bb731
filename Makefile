# What people and CI run. `make help` lists it. Nothing here writes outside the checkout and /tmp, besides the Debian
# packages of requirements/debian.txt, which are installed when root and missing.

PYTHON ?= python3
BIN := .venv/bin
ONLY ?= *
# Four processes share the tests, because many tests wait. Those of one group stay together (tests/support/sharing.py),
# in the order of collection: the long ones are begun first.
PYTEST := $(BIN)/pytest -n 4 --dist loadscope --no-loadscope-reorder
# Programs that requirements/debian.sh unpacked rather than installed.
export PATH := $(PATH):/usr/sbin:/sbin:$(CURDIR)/build/debian/usr/bin:$(CURDIR)/build/debian/usr/sbin
# One import of each package is enough for all the processes that the tests start; and what they print into a pipe is
# there when they write it out, as it is for users.
unexport PYTHONDONTWRITEBYTECODE PYTHONUNBUFFERED

.DEFAULT_GOAL := help
.PHONY: help setup debian test unit system engines newer kernels clean-system lint bench demo changelog lock clean
.DELETE_ON_ERROR:

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22

setup: debian .venv/.ready ## .venv with pinned packages; Debian packages if root

# Without root this only says what is missing: each test that needs it then says so again and is skipped.
debian:
	@PYTHON=$(PYTHON) requirements/debian.sh || test "$$(id -u)" != 0

.venv/.python: | debian
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "mica needs Python 3.11 or newer.")'
	@requirements/step.sh "Making .venv" $(PYTHON) -m venv .venv
	@touch $@

.venv/.packages: requirements/dev.lock .venv/.python
	@requirements/step.sh "Installing the packages of requirements/dev.lock into .venv" \
	  $(BIN)/pip install --disable-pip-version-check --require-hashes -r requirements/dev.lock
	@touch $@

.venv/.ready: pyproject.toml .venv/.packages
	@requirements/step.sh "Installing mica into .venv" \
	  $(BIN)/pip install --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

test: setup ## everything CI runs: linters, unit, system and engine tests
	$(PYTEST)

unit: setup ## the fast tests: no root, no servers
	$(PYTEST) -m "not system and not engines"

system: setup ## tests with root, FUSE, overlayfs, namespaces
	$(PYTEST) -m system

engines: setup ## tests with real registries, servers and engines
	$(PYTEST) -m engines

newer: setup ## the engine tests that a newer Debian's engines can run too, in a system unpacked below build/
	$(BIN)/pytest -m newer

# `make kernels RUN='.venv/bin/mica doctor'` runs another script than the system tests in the virtual machine.
ifdef AUFS
KERNEL ?= $(AUFS)
RUN ?= .venv/bin/pytest -m "system or engines" -k aufs
endif
KERNEL ?= linux-image-amd64
RUN ?= .venv/bin/pytest -m system
export RUN

kernels: setup ## the system tests on Debian 12's kernel, in a virtual machine (tests/README.md)
	@PYTHON=$(PYTHON) requirements/debian.sh qemu-system-x86 kmod e2fsprogs
	@$(BIN)/python -m tests.kernels.run --kernel '$(KERNEL)' -- "$$RUN"

# `make clean-system SUITE=trixie TMP=tmpfs COMMAND='make demo'`; SEE='/opt /etc/ssl' are directories of this machine
# that are there too, as a package index and certificates may be.
SUITE ?= bookworm
TMP ?= disk
COMMAND ?= make test
export COMMAND

clean-system: setup ## `make test` of a fresh clone in a Debian of its own, made for it (tests/README.md)
	@$(BIN)/python -m tests.cleansystem --suite '$(SUITE)' --tmp '$(TMP)' --see '$(SEE)' -- "$$COMMAND"

lint: setup ## ruff, mypy, order of imports
	$(BIN)/pytest tests/test_linters.py tests/test_layers.py

bench: setup ## benchmarks; ONLY=glob chooses rows
	$(BIN)/python -m benchmarks.run --only '$(ONLY)'

demo: setup ## a real image is published, mounted lazily and run
	@$(BIN)/python -m demo.demo

changelog: setup ## VERSION=…: the files of changes/ become a section of CHANGELOG.md
	$(BIN)/towncrier build --yes --version '$(VERSION)'

lock: .venv/.python ## pin requirements/*.in anew, with hashes
	test -x build/lock/bin/uv || { $(PYTHON) -m venv build/lock && build/lock/bin/pip install --quiet uv; }
	for name in runtime dev; do \
	  UV_CUSTOM_COMPILE_COMMAND='make lock' build/lock/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 \
	    --generate-hashes --no-annotate --no-emit-index-url --output-file requirements/$$name.lock requirements/$$name.in || exit 1; \
	done

clean: ## remove what this file made
	rm -rf .venv build src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
