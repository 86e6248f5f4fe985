# Every command of this repository. `make run` and `make test` need nothing but Python 3.11 and make: they set up the rest.
PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python
READY  := $(VENV)/.ready
CASES  ?= tests/data/conformance.jsonl.xz

.DEFAULT_GOAL := help
.PHONY: help setup run demo test check bench conformance generate lock clean

help:            ## list the commands
	@grep -hE '^[a-z]+: .*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

setup: $(READY)  ## make the environment in .venv, from requirements.lock (hashes checked)

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Stoop needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { echo "$(PYTHON) can't make environments: install its venv package (Debian: apt-get install python3-venv)"; exit 2; }
	$(PYTHON) -m venv --clear $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(PY) -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --editable .
	@touch $@

run: $(READY)    ## start the agent in var/, stage one attack, show the answer; ONCE=1 ends after it
	@$(PY) -m tools.demo $(if $(ONCE),--once)

demo: $(READY)   ## isolate, freeze and kill a container (as root): nothing is left; exit 0 only if all was so
	@$(PY) -m tools.demo_container

test: $(READY)   ## all tests; those that need root say so when they are skipped
	$(PY) -m pytest $(ARGS)

check: $(READY)  ## lint, types, layers, generated files
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
	$(PY) -m tools.generate --check

conformance: $(READY)  ## compare with Talon's results: CASES=FILE (default: the copy in tests/data)
	@$(PY) -m tools.conformance $(CASES)

bench: $(READY)  ## measure speed against floors of the same run; ARGS="idle ndjson" for some rows
	@$(PY) -m bench $(ARGS)

generate: $(READY)  ## write the generated references and schema anew
	$(PY) -m tools.generate

lock: $(READY)   ## write requirements.lock anew (needs uv)
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
	  --no-emit-index-url --all-extras --group dev pyproject.toml -o requirements.lock

clean:           ## remove the environment and everything that was made
	rm -rf $(VENV) var dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache *.egg-info
