# Everything needs nothing but Python 3.11 or newer and make; the rest is installed into .venv.
PYTHON ?= python3
# On a machine that reaches PyTorch's own index, PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"
# takes the small CPU build instead of the one with CUDA.
PIP_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-slow test-xl soak recovery replay snapshots screenshot tui-cost lint format clean help

help:  ## what there is to make
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(VENV)/.installed  ## a ring of three nodes on the pocket model, here and now
	@if [ -t 0 ] && [ -t 1 ]; then $(BIN)/ring up --nodes 3; else $(BIN)/ring up --nodes 3 --ask 'def __init__(self, '; fi

# Most of the tests' time is waiting for processes, so three files run at once, on two cores too.
# Tests over real processes can run out of patience on a loaded machine: what failed is tried once more, in plain sight.
test: $(VENV)/.installed  ## the test suite
	$(BIN)/python -m pytest -n 3 --dist loadfile || $(BIN)/python -m pytest --last-failed --last-failed-no-failures none

test-slow: $(VENV)/.installed  ## the tests that take minutes or gigabytes
	$(BIN)/python -m pytest -m slow

test-xl: $(VENV)/.installed  ## GPT-2 XL's real shape, random weights, over four nodes: memory, time to first token, tokens/s
	$(BIN)/python -m tests.xl

soak: $(VENV)/.installed  ## two minutes of random kills, stops, cancels and strangers against a loaded ring
	$(BIN)/python -m tests.soak

recovery: $(VENV)/.installed  ## how long a ring takes to notice, to heal and to go on
	$(BIN)/python -m tests.recovery

replay: $(VENV)/.installed  ## whether a stream replayed after a failure goes on with the same tokens, on thousands of prompts
	$(BIN)/python -m tests.replay

snapshots: $(VENV)/.installed  ## keep the dashboard's pictures as they are drawn now
	RING_SNAPSHOTS=write $(BIN)/python -m pytest tests/tui/test_snapshots.py

screenshot: $(VENV)/.installed  ## docs/dashboard.svg, from a real run on the pocket model
	$(BIN)/python -m tests.tui.picture docs/dashboard.svg

tui-cost: $(VENV)/.installed  ## processor time and memory of the dashboard
	$(BIN)/python -m tests.tui.cost

lint: $(VENV)/.installed  ## ruff and mypy, strictly
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed  ## let ruff put the code in shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove the virtual environment and caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
