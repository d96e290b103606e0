# One command each on a fresh machine: `make train` and `make test`. They make .venv and install first.

# The first interpreter that is new enough; name another with `make PYTHON=/path/to/python`.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
WORKDIR ?= runs/av_digits

BIN := .venv/bin
PIP := $(BIN)/pip --disable-pip-version-check install --quiet

.PHONY: train test venv extras lint format bench clean

train: .venv/.runtime
	$(BIN)/python train.py --config=configs/av_digits.py --workdir=$(WORKDIR)
	$(BIN)/python eval.py --workdir=$(WORKDIR)
	@echo "Open $(abspath $(WORKDIR))/report.html"

test: venv lint
	$(BIN)/pytest -q -n 2 --dist loadscope

venv: .venv/.dev

# What training needs, without the development tools.
.venv/.runtime: requirements.txt pyproject.toml
	@$(make_venv)
	$(PIP) --editable .
	@touch $@

.venv/.dev: requirements.txt pyproject.toml
	@$(make_venv)
	$(PIP) --editable ".[dev]"
	@touch .venv/.runtime $@

# What the slow tests need besides: to run the notebooks, to compile for TPU.
extras: venv
	$(PIP) --editable ".[dev,notebooks,tpu]"

define make_venv
"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	echo "Python 3.11 or newer is needed: install it, or name it with make PYTHON=/path/to/python3.11" >&2; exit 1; }; \
"$(PYTHON)" -m venv .venv
endef

lint: venv
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: venv
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

BENCHMARKS = $(sort $(wildcard benchmarks/bench_*.py))

# About an hour on 2 CPU cores.
bench: venv
	@$(BIN)/python -c "import torch, torch_dct, scipy" 2>/dev/null || { \
		echo 'make bench compares with PyTorch: run .venv/bin/pip install -e ".[parity]" first' >&2; exit 1; }
	@failed=0; for command in $(BENCHMARKS) "benchmarks/bench_step.py --shape=published --rounds=4 --steps=3"; do \
		echo "== $$command"; $(BIN)/python $$command --out=benchmarks/results || failed=1; done; \
	$(BIN)/python benchmarks/targets.py || failed=1; exit $$failed

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find fusion_jax tests configs benchmarks notebooks -name __pycache__ -type d -prune -exec rm -rf {} +
