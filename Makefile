# make demo · make test · make check · make bench; each sets up .venv first when it has to.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test check bench setup clean

demo: setup
	$(BIN)/anchorprune demo

test: setup
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

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

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis
