# Everything sets itself up in .venv; all it takes is Python 3.11 or newer and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Options for what a target runs, for example: make demo ARGS="--exposure 0.05"
ARGS ?=

.PHONY: help venv demo test attack load lint format bench clean

help:
	@echo "make demo    a simulated heating ramp, decomposed live, stored and drawn"
	@echo "make test    the whole test suite"
	@echo "make attack  20,000 document streams as no beamline should send them (a quarter of an hour)"
	@echo "make load    100,000 events, a server that is killed, processes that are killed"
	@echo "make lint    style, types and the direction of imports"
	@echo "make format  lay the code out as lint wants it"
	@echo "make bench   speed, side by side with peers"
	@echo "make venv    only set .venv up, or bring it up to date"
	@echo "make clean   remove .venv, caches and what the demo left"

venv: $(VENV)/test.stamp

demo: $(VENV)/test.stamp
	$(BIN)/bluesky-cmf demo $(ARGS)

# Two files of tests at a time: each takes a core, and more would disturb each other.
test: $(VENV)/test.stamp
	$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

attack: $(VENV)/test.stamp
	$(BIN)/python -m tests.attack $(ARGS)

load: $(VENV)/test.stamp
	$(BIN)/python -m tests.benchmarks.load
	$(BIN)/python -m tests.benchmarks.outage
	$(BIN)/python -m tests.benchmarks.crash

bench: $(VENV)/test.stamp $(VENV)/bench.stamp
	$(BIN)/python -m tests.benchmarks $(ARGS)

lint: $(VENV)/lint.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/lint.stamp
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist *.egg-info demo-catalog demo.png .coverage \
		.pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp is newer than these two files where what is installed follows them.
$(VENV)/test.stamp $(VENV)/lint.stamp $(VENV)/bench.stamp: $(VENV)/%.stamp: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing into $(VENV) for '$*'; the first time takes a few minutes ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints.txt --editable '.[$*]'
	@touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "bluesky-cmf needs Python 3.11 or newer, and '$(PYTHON)' is not: name another one," \
			"for example: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { \
		rm -rf $(VENV); \
		echo "'$(PYTHON) -m venv' failed: install its venv module" \
			"(Debian and Ubuntu: apt install python3-venv)" >&2; exit 1; }
