# make demo · make test · make check · make fuzz · make docs · make bench; each sets up .venv first when it has to. An
# environment that is there already, with its torch, is used as it is when it is named: make demo VENV=$$VIRTUAL_ENV
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test fuzz check docs bench setup dist clean

demo: setup
	$(BIN)/anchorprune demo

test: setup
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal

# Random files for every reader and random command lines, for so long; what fails is left in tests/corpus.
MINUTES ?= 60
fuzz: setup
	FUZZ_MINUTES=$(MINUTES) $(BIN)/python -m pytest --numprocesses auto --dist worksteal tests/test_fuzz.py

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Into site/, of docs/, the parsers, the docstrings and the schema of results; a warning is an error.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Each says whether it met its target; make goes on and fails at the end. With UPSTREAM=path/to/clip_benchmark (in an
# environment of its own, see benchmarks/end_to_end.py) whole commands are timed too.
bench: setup
	@failed=0; \
	for script in start_up classifier_speed sweep_cost selection_cost encoder_speed; do \
	    echo "== $$script"; $(BIN)/python benchmarks/$$script.py || failed=1; \
	done; \
	if [ -n "$(UPSTREAM)" ]; then \
	    echo "== end_to_end"; $(BIN)/python benchmarks/end_to_end.py --upstream "$(UPSTREAM)" || failed=1; \
	fi; \
	exit $$failed

# The wheel and the sdist, in dist/, looked at by twine; with tools of its own, some 60 MB.
dist:
	test -x .venv-dist/bin/twine || { $(PYTHON) -m venv .venv-dist && .venv-dist/bin/pip install --quiet build twine; }
	rm -rf dist && .venv-dist/bin/python -m build
	.venv-dist/bin/twine check --strict dist/*

setup: $(VENV)/.installed

# pip leaves a torch alone that is there and new enough.
$(VENV)/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@if $(BIN)/python -c 'import torch' 2>/dev/null; then \
	    echo "$(VENV) has torch already: some 600 MB of other packages are downloaded if they are missing"; \
	else \
	    echo "Downloading torch, on Linux with CUDA some 3 GB, and some 600 MB of other packages, to $(VENV). Without"; \
	    echo "CUDA it is 0.2 GB: install torch and torchvision from torch's CPU index (pytorch.org) into an environment"; \
	    echo "and run make demo VENV=that-environment. pip's cache keeps what was downloaded."; \
	fi
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

# Only what it made: an environment that was named is left alone.
clean:
	rm -rf .venv .venv-dist build dist site .mypy_cache .pytest_cache .ruff_cache .hypothesis
