# `make help` lists what can be made. PYTHON is the Python that .venv is built from.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Text is the same whatever the user's locale.
export PYTHONUTF8 := 1

.DEFAULT_GOAL := help
.PHONY: help demo test test-all lint package bench picture clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 12

demo: $(VENV)/.demo ## run the command line on a phantom cell (DATA=folder: on your own files); pictures in demo/
	$(BIN)/lpa3d demo $(if $(DATA),--data "$(DATA)") $(if $(OUTPUT),--output "$(OUTPUT)") $(DEMO_OPTIONS)

picture: $(VENV)/.demo ## make the README's picture, docs/images/demo.png, from the phantom
	$(BIN)/lpa3d demo --thumbnail docs/images/demo.png

test: $(VENV)/.test ## run the tests and the examples in the docstrings, on all cores (PYTEST_OPTIONS="-k label -x" picks some)
	$(BIN)/python $(PYTEST) --doctest-modules tests src/lpa3d $(PYTEST_OPTIONS)

PYTEST := -m pytest -n auto --dist worksteal

# A kernel without its cache is compiled in each process; overflow of NumPy's scalars is what kernels count on.
test-all: $(VENV)/.test ## run the tests at length, for hours: many examples, kernels not cached, with their bounds checked, and as Python
	LPA3D_KERNEL_CACHE=0 LPA3D_MAX_EXAMPLES=150 $(BIN)/python $(PYTEST) -m '' --doctest-modules tests src/lpa3d $(PYTEST_OPTIONS)
	NUMBA_BOUNDSCHECK=1 $(BIN)/python $(PYTEST) tests $(PYTEST_OPTIONS)
	NUMBA_DISABLE_JIT=1 LPA3D_MAX_EXAMPLES=10 $(BIN)/python $(PYTEST) -m interpreted -W ignore::RuntimeWarning tests $(PYTEST_OPTIONS)

lint: $(VENV)/.dev ## check style (ruff), types (mypy) and the floors of the house (import-linter)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

package: $(VENV)/.dev ## build wheel and sdist in dist/, and try each in an empty environment
	rm -rf dist
	$(BIN)/python -m build --outdir dist .
	for file in dist/*.whl dist/*.tar.gz; do \
	  rm -rf dist/empty && $(PYTHON) -m venv dist/empty && \
	  dist/empty/bin/python -m pip install --quiet --disable-pip-version-check "$$file" && \
	  dist/empty/bin/python -I tests/smoke.py || exit 1; \
	done
	rm -rf dist/empty

bench: $(VENV)/.bench ## run every peer beside lpa3d, some 30 minutes (DATA=folder, BENCH_OPTIONS="--size 256 --only label")
	$(BIN)/python benchmarks/compare.py $(if $(DATA),--data "$(DATA)") $(BENCH_OPTIONS)

clean: ## remove the environment, what the demo made, and all caches
	rm -rf $(VENV) demo dist .asv .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# The environment, once for each set of extras; pyproject.toml says what is in them.
$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "lpa3d needs Python 3.11 or newer; '$(PYTHON)' is not. Name another: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.demo $(VENV)/.test $(VENV)/.dev $(VENV)/.bench: $(VENV)/.%: pyproject.toml | $(VENV)/.made
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[$*]'
	touch $@
