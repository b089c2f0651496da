# Every target makes the environment that it needs, in $(VENV).
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
JOBS ?= 2

.PHONY: demo test lint types docs matrix endurance clean

demo: $(VENV)/.bench
	$(BIN)/catome demo $(DEMO)

test: $(VENV)/.dev
	HYPOTHESIS_PROFILE=ci $(BIN)/python -m pytest -n $(JOBS) $(TESTS)

lint: $(VENV)/.dev
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/basedpyright --pythonpath $(BIN)/python

docs: $(VENV)/.dev
	$(BIN)/mkdocs build --strict

# The table of docs/architectures.md, by trying everything.
matrix: $(VENV)/.dev
	PYTHONPATH=tests $(BIN)/python -m tools.matrix

# Every combination of settings, and hundreds of runs: too long for the tests.
endurance: $(VENV)/.dev
	PYTHONPATH=tests $(BIN)/python benchmarks/endurance.py

clean:
	rm -rf $(VENV) site catome-demo

$(VENV)/.%: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable ".[$*]"
	# A peer that pins an old torch, which it does not need.
	test $* != dev || $(BIN)/pip install --quiet --no-deps ca-tome==0.1.3
	touch $@
