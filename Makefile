# make demo, make test: from a clean checkout to a result. `make help` lists the rest.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: help setup demo test check bench boards sizes clean

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check
NATIVE := $(VENV)/.native
# onnxruntime-training and onnxruntime own the same module name: one environment can't hold both.
TRAINING_VENV := .venv-onnxruntime-training
TRAINING := $(TRAINING_VENV)/.installed
TRAINING_PYTHON = $(if $(wildcard $(TRAINING)),SPARSYFED_ONNXRUNTIME_TRAINING_PYTHON=$(CURDIR)/$(TRAINING_VENV)/bin/python)
C_SOURCES := $(wildcard edge_runtime/csrc/*.[ch] edge_runtime/csrc/fast/*.[ch] edge_runtime/onnxruntime/*.[ch])
BOARD_SOURCES := $(wildcard devices/boards/*.[ch] devices/boards/*/*.[ch])
CONSTRAINTS := requirements/constraints.txt
BENCH_ARGS := step
TEST_PROCESSES := 2

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 16

setup: $(NATIVE) $(TRAINING) ## make .venv, install everything, build the native library

demo: $(NATIVE) ## a fleet of watches trains over MQTT; a report (ENGINES=all, DEMO_ARGS="--quick" for more)
	@$(TRAINING_PYTHON) $(BIN)/sparsyfed demo $(if $(ENGINES),--engines $(ENGINES)) $(DEMO_ARGS)

test: $(NATIVE) $(TRAINING) ## run the tests (PYTEST_ARGS="-k name" to choose)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

check: $(NATIVE) ## style, types, layers, and the C core under the project's warnings
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy src/sparsyfed tests
	$(BIN)/lint-imports
	$(BIN)/cmake -S . -B build/developer -D SFD_DEVELOPER=ON > build/developer.log
	$(BIN)/cmake --build build/developer
	@if command -v clang-format > /dev/null; then clang-format --dry-run --Werror $(C_SOURCES) $(BOARD_SOURCES) tests/c/*.[ch] tools/c/*.c \
	    docs/examples/*/*.c edge_runtime/executorch/*.cpp edge_runtime/executorch/*.h; \
	else echo "clang-format is not installed: the layout of the C sources was not checked"; fi

bench: $(NATIVE) ## time training steps here (BENCH_ARGS="memory --models resnet18" for more)
	@$(TRAINING_PYTHON) $(BIN)/sparsyfed bench $(BENCH_ARGS)

sizes: $(NATIVE) ## measure the firmware of boards anew, into devices/boards/sizes.toml and README.md
	@SPARSYFED_UPDATE_SIZES=1 $(BIN)/python -m pytest -q -n 0 tests/tools/test_emulated_boards.py

boards: $(NATIVE) ## compilers and emulators of microboards (1.5 GB with what they need), and all firmware
	@bash tools/install_system_parts.sh --boards
	@for board in $$($(MAKE) --no-print-directory -s -C devices/boards list); do \
	    $(MAKE) --no-print-directory -s -C devices/boards BOARD=$$board; done

clean: ## remove what the other targets made
	rm -rf $(VENV) $(TRAINING_VENV) build .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The build tools come first, since the package itself is built without isolation: that keeps the
# CMake tree usable for the quick rebuild below. All else is one pip call, so that one resolution
# holds torch at its pin. A package that ExecuTorch needs comes as source and is built by setuptools.
$(INSTALLED): pyproject.toml CMakeLists.txt $(CONSTRAINTS) tools/install_system_parts.sh
	@echo "==> system parts: mosquitto, a C compiler, a Python that can make environments"
	@bash tools/install_system_parts.sh
	@python=$$(bash tools/install_system_parts.sh --python); \
	echo "==> $(VENV), from $$("$$python" --version)"; \
	"$$python" -m venv $(VENV)
	@echo "==> build tools"
	@$(PIP) install --quiet -c $(CONSTRAINTS) scikit-build-core cmake ninja setuptools
	@echo "==> sparsyfed-edge and what it needs (PyTorch is the large one; minutes the first time)"
	@$(PIP) install --quiet -c $(CONSTRAINTS) --no-build-isolation -e '.[dev]'
	@touch $@

$(NATIVE): $(INSTALLED) $(C_SOURCES)
	@echo "==> libsfd"
	@$(BIN)/cmake --build build/editable > build/native.log || { cat build/native.log >&2; exit 1; }
	@$(BIN)/cmake --install build/editable --prefix \
	    "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("platlib"))')" > build/native.log
	@touch $@

# There is no such package for every processor and Python: without it some tests are skipped.
$(TRAINING): $(INSTALLED)
	@echo "==> $(TRAINING_VENV)"
	@$(BIN)/python -m venv --without-pip $(TRAINING_VENV)
	@if $(PIP) --python $(TRAINING_VENV)/bin/python install --quiet --no-deps -c $(CONSTRAINTS) \
	    onnxruntime-training-cpu numpy; then touch $@; \
	else echo "onnxruntime-training can't be installed here: its tests are skipped"; fi
