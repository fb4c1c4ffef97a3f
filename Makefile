# One word each: `make demo` shows the toolkit at work, `make commit-checks` checks everything.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ollm-rl-installed
ARGS ?=

.PHONY: demo docs test wheel test-lowest test-newest lint types commit-checks clean

demo: $(STAMP)
	$(BIN)/ollm-rl demo $(ARGS)

# Into build/docs. What only the pages need is installed here and by nothing else.
docs: $(STAMP)
	$(BIN)/python -m pip install -q -e '.[docs]' -c constraints.txt
	$(BIN)/python -m mkdocs build --strict

# Two processes, and a file's tests in one of them, since they share models and Ray. In the order of the folders, because
# the last files are short ones: both processes end together.
test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

# The parts that other versions of packages could break, without constraints.txt: at the lowest versions that
# pyproject.toml allows, and at the newest releases (torch is named because newer ones come with CUDA).
VERSION_TESTS := tests/decode/test_acceptance.py tests/backbones tests/problems/test_prompts.py \
	tests/agents/policies/test_policies.py tests/envs/test_text_gen.py tests/envs/test_sb3.py tests/test_extras.py \
	tests/test_readme.py tests/test_users.py
test-lowest: VERSIONS := -c constraints-lowest.txt
test-lowest test-newest: test-%: wheel
	$(PYTHON) -m venv $(VENV)-$*
	$(VENV)-$*/bin/python -m pip install -q "$$(echo build/wheel/*.whl)[all]" torch==2.13.0 pytest pytest-timeout $(VERSIONS)
	$(VENV)-$*/bin/python -m pytest $(VERSION_TESTS)

wheel: $(STAMP)
	rm -rf build/wheel
	$(BIN)/python -m pip wheel -q --no-deps -w build/wheel .

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
