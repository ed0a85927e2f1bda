# hop: `make serve` and `make test` set up everything they need. `make help` lists the rest.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:

VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.installed
ADDR ?= :1826
# A target that takes part in `make test` announces itself and says how long it took.
STAGE = bash tests/stage.sh

NOTEBOOKS := $(sort $(wildcard notebooks/*.ipynb))
WOVEN := build/book/.woven
BOOK_SOURCES := $(NOTEBOOKS) $(shell find book -type f -not -path '*/__pycache__/*' 2>/dev/null) \
    $(wildcard hop/*.py)

export PIP_DISABLE_PIP_VERSION_CHECK ?= 1

.PHONY: help install system serve notebooks book test bench peers format clean \
    tangled lint types contracts unit selector mutants notebooks-test book-test wheel-test

help:  ## Say what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# ---------------------------------------------------------------- setting up

$(READY): pyproject.toml constraints.txt hatch_build.py
	@bash tests/setup.sh $(VENV)
	@touch $@

install: $(READY)  ## Make .venv with the pinned versions of everything

system:  ## Install the programs that the tests use (needs root or sudo, and apt-get)
	@bash tests/system.sh

# ---------------------------------------------------------------- using it

serve: $(READY)  ## Serve the example and the book with hop (ADDR=:1826)
	@$(MAKE) --no-print-directory $(WOVEN) || echo "make: serving all the same; the book has a fault" >&2
	$(PY) -m examples -type hop -addr $(ADDR)

notebooks: $(READY)  ## Open the notebooks in Jupyter
	$(VENV)/bin/jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) notebooks

book: $(WOVEN)  ## Weave the book: build/book/html and build/book/epub
	@echo "build/book/html/index.html"

$(WOVEN): $(READY) $(BOOK_SOURCES)
	$(PY) -m book.weave
	@touch $@

bench: $(READY)  ## Run the benchmarks and compare them with their targets
	$(PY) -m examples.benchmark --check

format: $(READY)  ## Sort imports and repair what ruff can repair
	$(VENV)/bin/ruff check --fix book examples tests

clean:  ## Remove everything that can be made again, .venv too
	rm -rf $(VENV) build/book build/coverage build/dist dist .coverage .coverage.* .mypy_cache \
	    .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find hop book examples tests notebooks -name __pycache__ -o -name .ipynb_checkpoints \
	    | xargs rm -rf

# ---------------------------------------------------------------- checking it

test: $(READY) system tangled lint types contracts unit selector mutants notebooks-test book-test wheel-test  ## Check everything, in the order from quick to slow
	@$(STAGE) --summary

tangled: $(READY)  ## The modules are what the notebooks say
	@$(STAGE) tangled $(PY) -m book.tangle check

lint: $(READY)  ## ruff
	@$(STAGE) lint $(VENV)/bin/ruff check

types: $(READY)  ## mypy --strict
	@$(STAGE) types $(VENV)/bin/mypy

contracts: $(READY)  ## Who may import what
	@$(STAGE) contracts $(VENV)/bin/lint-imports --no-logo --no-cache

unit: $(READY)  ## Unit tests; each module is covered by its own test file
	@$(STAGE) unit $(PY) -m tests.coverage_gate

selector: $(READY)  ## The tests that poll, once more on the portable poller
	@$(STAGE) selector env HOP_POLLER=selector $(PY) -m pytest -q -n 2 --dist loadfile

mutants: $(READY)  ## Planted mistakes that the tests must find
	@$(STAGE) mutants $(PY) -m tests.mutants

notebooks-test: $(READY)  ## Run every notebook and compare what it prints
	@$(STAGE) notebooks-test $(PY) -m tests.run_notebooks

book-test: $(READY)  ## Weave the book and look through it
	@$(STAGE) book-test $(PY) -m pytest -q tests/test_book.py

wheel-test: $(READY)  ## Build the wheel, install it into an empty environment, use it
	@$(STAGE) wheel-test $(PY) -m pytest -q tests/test_package.py

PEERS := build/peers
PEER_PACKAGES := 'setuptools<81' granian 'uvicorn[standard]' a2wsgi waitress gunicorn gevent cheroot bjoern fastwsgi \
    aiohttp flask-sock picows wsproto

peers:  ## Install the other servers that the benchmarks compare with (build/peers)
	test -x $(PEERS)/bin/pip || $(PY) -m venv $(PEERS)
	for peer in $(PEER_PACKAGES); do $(PEERS)/bin/pip install -q $$peer || echo "make: $$peer cannot be installed here" >&2; done
	PATH=$$PATH:/usr/sbin command -v nginx >/dev/null || bash tests/system.sh nginx || echo "make: nginx cannot be installed here" >&2
