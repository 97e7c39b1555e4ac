# Everything a contributor does, by name; CI runs the same names. `make help` lists them.
#
#   PYTHON=python3.13 make test VENV=.venv313      another interpreter, in an environment of its own
#   make test TESTS=tests/crdtsync ARGS='-k merge' part of the tests, with options for pytest

VENV ?= .venv
TESTS ?= tests
SCENARIO ?= split_brain
SEED ?= 1
BENCH ?= all
SEEDS ?= 0..99
ARGS ?=

BIN := $(VENV)/bin
# Quiet twice: errors only. Warnings are about the machine's own pip settings, dozens of lines before the first result.
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input --quiet --quiet

.DEFAULT_GOAL := venv
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

# --- the environment

# Candidates are run, not looked up: a version manager's shim is on the PATH for versions it cannot start, and some
# distributions ship `venv` without the `ensurepip` that it needs. The oldest version that we support comes first:
# what runs on it runs on the others.
CANDIDATES := $(if $(PYTHON),$(PYTHON),python3.11 python3.12 python3.13 python3 python)

define find_python
found=; lame=; \
for python in $(CANDIDATES); do \
    "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 || continue; \
    if "$$python" -c 'import ensurepip, venv' >/dev/null 2>&1; then found=$$python; break; fi; \
    lame=$${lame:-$$python}; \
done; \
if [ -z "$$found" ] && [ -n "$$lame" ]; then \
    version=$$("$$lame" -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
    echo "$$lame cannot make a virtual environment: its venv or ensurepip module is missing. On Debian or Ubuntu:" >&2; \
    echo "    apt-get install python$$version-venv" >&2; \
    exit 1; \
elif [ -z "$$found" ]; then \
    echo "crdtsync needs Python 3.11 or later; none of these runs as one: $(CANDIDATES)" >&2; \
    echo "Install it (on Debian or Ubuntu: apt-get install python3.11 python3.11-venv), or name one: make PYTHON=/path/to/python" >&2; \
    exit 1; \
fi
endef

.PHONY: venv
venv: $(VENV)/installed.stamp ## Make the virtual environment (the default)
	@:

# The interpreter is checked by its stamp and not by bin/python, which is a link into the system and older than we are.
$(VENV)/created.stamp:
	@$(find_python); \
	echo "making $(VENV) with $$found ($$("$$found" -V 2>&1))"; \
	"$$found" -m venv --clear $(VENV)
	@touch $@

# Changed pins are installed over the old ones, so that whoever is running tests meanwhile keeps a working environment.
# A package that is no longer pinned stays until `make clean`; CI always starts from nothing.
$(VENV)/requirements.stamp: requirements/dev.txt $(VENV)/created.stamp
	@echo "installing requirements/dev.txt"
	@$(PIP) install --require-hashes -r requirements/dev.txt
	@touch $@

$(VENV)/installed.stamp: pyproject.toml $(VENV)/requirements.stamp
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@
	@echo "$(VENV) is ready"

.PHONY: requirements
requirements: ## Pin the dependencies again (ARGS=--upgrade for the newest)
	@$(find_python); PYTHON=$$found requirements/update $(ARGS)

# --- what a contributor does

.PHONY: demo
demo: venv ## Watch three regions part, diverge, meet and converge
	$(BIN)/crdtsync demo $(ARGS)

# Two workers: what the smallest CI machine has, and enough to show a test that leans on another.
.PHONY: test
test: venv ## Run the tests, without the slow ones
	$(BIN)/python -m pytest -n 2 -m 'not slow' $(TESTS) $(ARGS)

.PHONY: slow
slow: venv ## Run the slow tests: long sweeps of seeds
	$(BIN)/python -m pytest -n 2 -m slow --timeout 1800 $(TESTS) $(ARGS)

# One after another: they measure, and three nodes with their workers are enough for a machine. A seed: ARGS='--seed 7'.
.PHONY: acceptance
acceptance: venv ## Cut, kill and attack real clusters, and check what is left
	$(BIN)/python -m pytest -s tests/acceptance $(ARGS)

.PHONY: coverage
coverage: venv ## Run the tests and show what they do not reach
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -m 'not slow' $(TESTS) $(ARGS)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

.PHONY: lint
lint: venv ## Check style, formatting and who may import whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache --no-logo

.PHONY: contracts
contracts: venv ## Check who may import whom
	$(BIN)/lint-imports --no-cache --no-logo

.PHONY: types
types: venv ## Check the types
	$(BIN)/mypy

.PHONY: format
format: venv ## Put the code in the house format, and fix what ruff can
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

.PHONY: simulate
simulate: venv ## Play a scenario in virtual time (SCENARIO=name or file, SEED=7, ARGS=...)
	$(BIN)/crdtsync sim run $(SCENARIO) --seed $(SEED) $(ARGS)

.PHONY: sweep
sweep: venv ## Play many seeds of the swarm, and judge them all (SEEDS=0..999, ARGS='--jobs 2')
	$(BIN)/crdtsync sim sweep --seeds $(SEEDS) $(ARGS)

.PHONY: mutants
mutants: venv ## Plant bugs in the core, and see that the simulator notices each (ARGS='NAME ...')
	$(BIN)/crdtsync sim mutants $(ARGS)

# An environment of their own: plots and kernels are heavy, and nothing else needs them.
$(VENV)-notebooks/installed.stamp: requirements/notebooks.txt $(VENV)/created.stamp
	@echo "installing requirements/notebooks.txt"
	@$(BIN)/python -m venv --clear $(VENV)-notebooks
	@$(VENV)-notebooks/bin/python -m pip --disable-pip-version-check --no-input --quiet --quiet install \
	    --require-hashes -r requirements/notebooks.txt
	@touch $@

.PHONY: notebooks
notebooks: $(VENV)-notebooks/installed.stamp ## Execute the notebooks (ARGS='--keep FOLDER' leaves what they show)
	PYTHONPATH=. $(VENV)-notebooks/bin/python notebooks/execute.py $(ARGS)

.PHONY: docs
docs: venv ## Check that every relative link in the documentation resolves
	$(BIN)/python docs/check_links.py

.PHONY: bench
bench: venv ## Measure (BENCH=end_to_end for one, ARGS=--full for the large sizes)
	$(BIN)/python -m benchmarks $(BENCH) $(ARGS)

# --- and the rest

.PHONY: clean
clean: ## Remove the virtual environment and what tools left
	rm -rf $(VENV) $(VENV)-notebooks build dist htmlcov .coverage .coverage.* \
	    .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find crdtsync regions simulator benchmarks tests docs -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

.PHONY: help
help: ## Say what there is
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
