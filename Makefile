# make train ARGS="cartpole --run.seed 1"; the first run installs into .venv. Another PYTHON or TORCH: make clean before.
PYTHON ?= python3
# the Triton that this torch has on a GPU
TORCH ?= torch==2.13.0 triton==3.7.1
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install
PYTEST := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(BIN)/python -m pytest
NEEDS := import sys; sys.exit(sys.version_info < (3, 11) and f"fastdreamer needs Python 3.11, got {sys.version.split()[0]}")

.PHONY: train test test-slow test-reliability kernels-check bench pictures lint clean

train: $(VENV)/.train
	@$(BIN)/python -m fastdreamer.train $(ARGS)

test: $(VENV)/.test
	$(PYTEST) -m "not slow" $(ARGS)

test-slow: $(VENV)/.test
	$(PYTEST) -m slow $(ARGS)

test-reliability: $(VENV)/.test
	$(PYTEST) tests/reliability $(ARGS)

kernels-check: $(VENV)/.test
	$(BIN)/python -m bench.kernels_check $(ARGS)

bench: $(VENV)/.test
	$(PYTEST) bench $(ARGS)
	$(BIN)/python -m bench.battery --dry-run --out $(VENV)/battery --section tests updates loop peers ops

pictures: $(VENV)/.test
	$(BIN)/python docs/pictures.py

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m mypy

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks

$(VENV)/.made:
	@$(PYTHON) -c '$(NEEDS)'
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.torch: $(VENV)/.made
	$(PIP) $(TORCH)
	@touch $@

SOURCES := pyproject.toml setup.py CMakeLists.txt $(wildcard kernels/csrc/* kernels/fastdreamer_kernels/*/*.cpp)

$(VENV)/.train: $(VENV)/.torch $(SOURCES)
	$(PIP) --quiet -e '.[report,dream]'
	@touch $@

$(VENV)/.test: $(VENV)/.torch $(SOURCES)
	$(PIP) --quiet -e '.[test]'
	@touch $@ $(VENV)/.train
