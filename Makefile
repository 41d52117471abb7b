# Everything happens in .venv/ and .run/ of this checkout. Two commands matter: make run, make test.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN    := .venv/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
# torch first and by its exact version: an open range could bring gigabytes of another build
TORCH  := torch==2.13.0

# ONNX Runtime would keep a device id in the home directory and report home
export ORT_DISABLE_TELEMETRY := 1

.PHONY: install run test test-slow bench bench-peers bench-formats lint types imports protos clean
.DEFAULT_GOAL := help

help:
	@echo "make run        install, train a small real model, export, publish, serve, predict (ONCE=1 stops then)"
	@echo "make test       install everything, then lint, types, import rules and all tests"
	@echo "make test-slow  the long tests; real data is read from PENSTOCK_DATA"
	@echo "make bench      serving speed beside its peers; writes docs/benchmarks/serving.md"
	@echo "make bench-peers  beforehand: install LitServe, BentoML, Ray Serve, MLServer and Triton for it, in .run/peers"
	@echo "make install    only the environment that make test needs"
	@echo "make clean      remove what was built, the demonstration's models included"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"Python 3.11 or newer is needed; {sys.executable} is {v.major}.{v.minor}. Name another: make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv .venv

# what the demonstration needs
.venv/.run-installed: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) $(TORCH)
	$(PIP) --editable '.[cpu,train,demo]'
	@touch $@

# what the tests need: all of it
.venv/.all-installed: pyproject.toml constraints.txt .venv/.run-installed
	$(PIP) --editable '.[cpu,train,demo,torchserve,load,plot,dev]'
	@touch $@

install: .venv/.all-installed

run: .venv/.run-installed
	@$(BIN)/python -m examples.demo $(if $(ONCE),--once)

lint: .venv/.all-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/.all-installed
	$(BIN)/mypy

imports: .venv/.all-installed
	$(BIN)/lint-imports --no-cache

test: lint types imports
	@command -v java >/dev/null || echo "java is missing: the TorchServe tests will be skipped (Debian: apt-get install openjdk-17-jre-headless)"
	$(BIN)/python -m pytest

test-slow: .venv/.all-installed
	$(BIN)/python -m pytest -m slow

bench: .venv/.bench-installed
	$(BIN)/python -m loadtests.bench

.venv/.bench-installed: pyproject.toml constraints.txt .venv/.run-installed
	$(PIP) --editable '.[bench]'
	@touch $@

# each in a virtual environment of its own: their packages would change what Penstock runs on
PEERS := litserve bentoml rayserve mlserver triton
bench-peers: $(PEERS:%=.run/peers/%/.installed)

.run/peers/%/.installed: loadtests/bench/servers/requirements-%.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	@touch $@

bench-formats: .venv/.all-installed
	$(BIN)/python -m loadtests.bench_formats

protos: .venv/.all-installed
	$(BIN)/python -m formats.protos.generate

clean:
	rm -rf .venv .run build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
