# Everything happens in .venv, which these targets make and keep up to date.
#
#   make serve    build, and run the server; ARGS="--port 9000" passes options on
#   make quick    style, types of what changed since SINCE=HEAD, and the tests of half a minute: unit,
#                 meta and contract tests by one interface, without the slow ones
#   make test     run all tests, on up to four cores; ARGS="-m 'not slow'" or ARGS=tests/unit narrows
#                 them, ARGS="-n 0 --pdb" runs them in this process
#   make check    the static checks; `make --keep-going check` tells all that is wrong at once
#   make format   put the code into the form that `make check` wants
#   make nightly  the property tests at length: 100,000 pairs, 10,000 examples each; the API's
#                 description; signals to stop, 25 times each; 500 changes of the policy while workers
#                 are killed, 1,000 of 10,000 rules; the coverage of lines
#   make coverage the lines of Python and Cython that the tests reach, by an engine built for it
#   make sanitize the engine's tests, with it built so that a stray read or write ends them; needs gcc
#   make bench    the full benchmark, into bench-results; ARGS=--agent-aegis takes it along
#   make instructions  count the instructions of a decision by valgrind, and store them in
#                 benchmarks/results
#   make clean    remove what these targets made, also the database of `make serve`; results of
#                 benchmarks stay
#   make help     show this
#
# Needs Python 3.11 or newer with venv, a C compiler and a package index. `make PYTHON=python3.12 ...`
# takes another Python than `python3`; if .venv has another one than that, it is made anew.

PYTHON ?= python3
ARGS ?=
VENV := .venv
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check
SINCE ?= HEAD
SANITIZED := build/sanitized
COVERED := build/covered
QUICKLY := python -m pytest --quiet -p no:schemathesis -m "not slow and not rsgi"
# Tests that measure time share it with the others: no more of these than four.
IN_PARALLEL := -n auto --maxprocesses 4 --dist loadgroup
UNDER_SANITIZERS = PYTHONMALLOC=malloc ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
    LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libstdc++.so.6)"
ENGINE_SOURCES := $(wildcard aegis_core/*.pyx aegis_core/*.pxd aegis_core/*.pxi)
ENGINE_MODULES := $(patsubst %.pyx,%,$(wildcard aegis_core/*.pyx))
PYTHON_CODE := aegis aegis_core tests benchmarks setup.py

# The Python behind an environment: `python3` may be that of an active .venv. It is looked up before
# .venv leads the PATH.
BEHIND := import os, sys; print(os.path.realpath(sys.executable))
BASE_PYTHON := $(shell $(PYTHON) -c '$(BEHIND)' 2> /dev/null)

# The checkers start helpers by name, and these must be the ones in .venv.
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.DELETE_ON_ERROR:
.PHONY: quick-types quick-contract quick-units
.PHONY: serve quick test check check-style check-types check-imports format nightly coverage sanitize \
    bench instructions clean help

serve: $(VENV)/installed
	aegis serve policy.yaml $(ARGS)

quick: $(VENV)/installed $(VENV)/test-tools $(VENV)/check-tools
	@$(MAKE) --no-print-directory --jobs 2 --keep-going --output-sync=target \
	    check-style quick-types quick-contract quick-units

quick-types:
	changed=$$({ git diff --name-only --diff-filter=d $(SINCE); git ls-files --others --exclude-standard; } \
	    | grep -E '^(aegis|aegis_core|tests|benchmarks)/.*\.pyi?$$'); test -z "$$changed" || mypy $$changed

quick-contract:
	$(QUICKLY) tests/contract

quick-units:
	$(QUICKLY) tests/unit tests/meta

test: $(VENV)/installed $(VENV)/test-tools
	python -m pytest $(IN_PARALLEL) $(ARGS)

nightly: $(VENV)/installed $(VENV)/test-tools
	AEGIS_PAIRS=100000 HYPOTHESIS_PROFILE=nightly python -m pytest tests/property --timeout 0 $(ARGS)
	AEGIS_API_EXAMPLES=1000 python -m pytest tests/process/test_openapi.py
	AEGIS_SIGNAL_ROUNDS=25 python -m pytest tests/process/test_signals.py --timeout 0
	AEGIS_PUTS=500 AEGIS_RELOADS=1000 python -m pytest tests/process/test_switching.py --timeout 0
	$(MAKE) coverage

# Line tracing makes the engine many times slower: slow tests are left out, and one that fails, since it bounds a
# time, ends nothing here.
coverage: $(VENV)/installed $(VENV)/test-tools
	rm -rf $(COVERED)
	AEGIS_CORE_DEBUG=1 $(PIP) install --verbose --no-deps --target $(COVERED) .
	cp -R tests benchmarks examples docs README.md policy.yaml pyproject.toml $(COVERED)
	cp aegis_core/*.p[xy]* build/debug/cython/aegis_core/*.c $(COVERED)/aegis_core
	cd $(COVERED) && python -m coverage run -m pytest $(IN_PARALLEL) --timeout 0 -m "not slow" \
	    --ignore tests/meta $(ARGS) || test $$? = 1
	cd $(COVERED) && python -m coverage combine --quiet && python -m coverage report

# In a folder of its own, so that what is built never lies where something else would load it. Python itself is not
# instrumented: the sanitizers are loaded before it, they see every block since it takes all of them
# from malloc, and what it leaves behind at its end is no finding.
sanitize: $(VENV)/installed $(VENV)/test-tools
	rm -rf $(SANITIZED)
	AEGIS_CORE_SANITIZE=1 $(PIP) install --verbose --no-deps --target $(SANITIZED) .
	cp -R tests benchmarks pyproject.toml $(SANITIZED)
	cd $(SANITIZED) && $(UNDER_SANITIZERS) python -c \
	    'from aegis_core import engine; assert engine.__file__.startswith("$(CURDIR)/$(SANITIZED)/")'
	cd $(SANITIZED) && $(UNDER_SANITIZERS) python -m pytest -p no:cacheprovider --timeout 0 \
	    tests/unit/test_engine.py tests/property $(ARGS)

check: check-style check-types check-imports

check-style: $(VENV)/check-tools
	ruff check $(PYTHON_CODE)
	ruff format --check $(PYTHON_CODE)
	cython-lint aegis_core

check-types: $(VENV)/installed $(VENV)/test-tools $(VENV)/check-tools
	mypy
	python -m mypy.stubtest $(patsubst aegis_core/%.pyi,aegis_core.%,$(wildcard aegis_core/*.pyi)) --mypy-config-file pyproject.toml

check-imports: $(VENV)/installed $(VENV)/check-tools
	lint-imports --no-logo --no-cache

format: $(VENV)/check-tools
	ruff check --fix-only $(PYTHON_CODE)
	ruff format $(PYTHON_CODE)

bench: $(VENV)/installed
	python -m benchmarks $(ARGS)

instructions: $(VENV)/installed
	python -m benchmarks.instructions --write

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile

clean:
	rm -rf $(VENV) build dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache .benchmarks
	rm -rf .import_linter_cache
	rm -f aegis_core/*.so aegis_core/*.c aegis_audit.db aegis_audit.db-* aegis_audit.db.*
	find $(wildcard aegis aegis_core tests benchmarks) -name __pycache__ -type d -prune -exec rm -rf {} +

# INVARIANT: what is run and tested is this checkout. The install points here, so an edited .py file
# counts at once; a file that only the build reads makes the engine be built again.
$(VENV)/installed: $(VENV)/pip pyproject.toml setup.py aegis/__init__.py $(ENGINE_SOURCES)
	@echo "Building the engine and installing Aegis into $(VENV): a minute or two, once."
	PYTHONWARNINGS="ignore:Editable installation" $(PIP) install --verbose --editable .
	@touch $@

$(VENV)/test-tools: $(VENV)/pip pyproject.toml
	$(PIP) install --group test
	@touch $@

$(VENV)/check-tools: $(VENV)/pip pyproject.toml
	$(PIP) install --group check
	@touch $@

# Only pip from 25.1 on knows dependency groups.
$(VENV)/pip:
	@test -n "$(BASE_PYTHON)" || { echo "$(PYTHON) cannot be started: name a Python of 3.11 or newer, as in \`make PYTHON=python3.12\`"; exit 1; }
	@"$(BASE_PYTHON)" -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "$(PYTHON) is older than 3.11: name a newer one, as in `make PYTHON=python3.12`")'
	rm -rf $(VENV)
	"$(BASE_PYTHON)" -m venv $(VENV)
	$(PIP) install --upgrade "pip>=25.1"
	@touch $@

# INVARIANT: .venv has the Python that PYTHON names; without PYTHON, the one that it was made with.
ifneq ($(origin PYTHON),file)
ifneq ($(BASE_PYTHON),$(shell $(VENV)/bin/python -c '$(BEHIND)' 2> /dev/null))
.PHONY: $(VENV)/pip
endif
endif

# The compiled engine lies beside its source, where a clean-up may take it away.
ifneq ($(words $(ENGINE_MODULES)),$(words $(foreach module,$(ENGINE_MODULES),$(wildcard $(module).*.so))))
.PHONY: $(VENV)/installed
endif
