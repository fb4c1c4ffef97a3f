# One word each: `make demo` shows the toolkit at work, `make commit-checks` checks everything.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ollm-rl-installed
ARGS ?=

.PHONY: demo test lint types commit-checks clean

demo: $(STAMP)
	$(BIN)/ollm-rl demo $(ARGS)

test: $(STAMP)
	$(BIN)/python -m pytest $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

# In this order: the quick checks speak first.
commit-checks:
	$(MAKE) lint
	$(MAKE) types
	$(MAKE) test

# What was measured (runs/) and the environment stay.
clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .coverage
	find ollm_rl agents envs experiments pretrain tests -type d -name __pycache__ -prune -exec rm -rf {} +

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -e '.[dev]' -c constraints.txt
	touch $@
