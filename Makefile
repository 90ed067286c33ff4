# `make help` lists the targets. Everything runs in a virtual environment of its own, .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed
# One thread per process: several processes with spinning threads on few cores stall one another.
TEST_ENV := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
JOBS ?= 2

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow lint types check bench clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[dev]" --constraint constraints.txt
	touch $(READY)

install: $(READY)  ## the virtual environment with the package and its tools

demo: $(READY)  ## train ODC on 5,000 real digits, show the results
	$(BIN)/python -m odc_lightning

test: $(READY)  ## the tests, under 10 minutes on 2 cores
	$(TEST_ENV) $(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m "not slow"

test-slow: $(READY)  ## the longer tests
	$(TEST_ENV) $(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m slow

lint: $(READY)  ## ruff
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: $(READY)  ## mypy
	$(BIN)/mypy

check: lint types test test-slow  ## everything CI runs

bench: $(READY)  ## ratios against peers and limits into bench/results.md: half an hour of a quiet machine
	$(BIN)/python bench/all.py > bench/results.writing && mv bench/results.writing bench/results.md

clean:  ## remove the environment and caches; runs/ stays
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
