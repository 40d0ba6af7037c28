# make demo   the whole flow on the small model that ships with the package
# make test   every check: format, lint, types, layers of the code, tests
# Both make .venv and install what they need the first time.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= build/demo
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
# torch's own index has CPU wheels; the plain package index may offer only CUDA ones, gigabytes of
# them. Where this index can't be reached, the plain one does.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

# Tests and demo are small: threads of two processes on few cores only get in each other's way.
TEST_THREADS ?= 1

.PHONY: demo test check slow docs clean

demo: $(VENV)/installed
	rm -rf $(OUT)
	mkdir -p $(dir $(OUT))
	$(BIN)/prunekit demo $(OUT)

test: check
	OMP_NUM_THREADS=$(TEST_THREADS) $(BIN)/python -m pytest -q -n 2

check: $(VENV)/tested
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

slow: $(VENV)/tested
	OMP_NUM_THREADS=$(TEST_THREADS) $(BIN)/python -m pytest -q -m slow

docs: $(VENV)/tested
	OMP_NUM_THREADS=$(TEST_THREADS) $(BIN)/python benchmarks/families.py --write

clean:
	rm -rf $(VENV) build

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) --extra-index-url $(TORCH_INDEX) --retries 1 --timeout 20 torch
	$(PIP) --editable '.[plot]'
	touch $@

$(VENV)/tested: $(VENV)/installed
	$(PIP) --editable '.[test]'
	touch $@
