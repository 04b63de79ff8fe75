# Two commands set everything up: `make quickstart` and `make test`. Both need Python 3.11+ only.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PEERS := benchmarks/.peers

.PHONY: quickstart test test-slow lint chromium clean bench-pretrain bench-sft bench-lora bench-dpo \
  bench-grpo

quickstart: $(VENV)/installed
	$(BIN)/rung run recipes/quickstart.yaml

test: $(VENV)/installed-test chromium
	$(BIN)/python -m pytest

test-slow: $(VENV)/installed-test
	$(BIN)/python -m pytest -m slow --timeout=7200

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# torch first and alone: the CPU build where pip finds one, never replaced by what follows.
$(VENV)/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt torch
	$(BIN)/pip install -q -c constraints.txt -e .
	touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(BIN)/pip install -q -c constraints.txt -e '.[test]'
	touch $@

# The report is looked at in a real browser; without one that test says why it skips.
chromium:
	@command -v chromium >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
	  && { apt-get update -qq && apt-get install -y -qq chromium; } >/dev/null 2>&1; } || true

# The peers live in an environment of their own.
$(PEERS)/installed: benchmarks/peers-requirements.txt
	test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/pip install -q torch==2.13.0
	$(PEERS)/bin/pip install -q -r benchmarks/peers-requirements.txt
	touch $@

bench-pretrain bench-sft bench-lora bench-dpo bench-grpo: $(VENV)/installed $(PEERS)/installed
	$(BIN)/python benchmarks/compare.py $(@:bench-%=%)

clean:
	rm -rf $(VENV) .rung build *.egg-info
