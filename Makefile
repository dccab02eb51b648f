# The two commands: `make demo` and `make test`. Each sets itself up in .venv; a second run is fast.
#   PYTHON=python3.12   which interpreter (3.11 to 3.13)
#   TORCH=2.11.0        another torch; TORCH=system uses the one the interpreter already has
#   CUDA=12             DALI for CUDA 12 drivers instead of 13
#   JOBS=4              test processes
PYTHON ?= python3
VENV ?= .venv
TORCH ?= 2.13.0
CUDA ?= 13
JOBS ?= 2
ARGS ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
CONSTRAINTS := $(VENV)/constraints.txt
BUILD = $(BIN)/python -c "import torch; print(torch.__version__, torch.version.cuda)"
export OMP_NUM_THREADS ?= 1

.PHONY: help demo test test-fast lint format dev bench docs clean
help:
	@echo "make demo    NIfTI -> corpus -> pretraining -> fine-tuning -> demo/report.html"
	@echo "make test    the whole test suite (test-fast leaves the slow ones out)"
	@echo "make bench   throughput of every stage beside its peers, and what moved since the baseline"
	@echo "make lint    ruff and pyright;  make dev  everything, and the git hooks"
	@echo "make docs    the documentation, into build/site"

demo: $(VENV)/.run
	$(BIN)/mim3d demo $(ARGS)

test: $(VENV)/.test
	$(BIN)/python -P -m pytest -n $(JOBS) --dist loadfile $(ARGS)

test-fast: $(VENV)/.test
	$(BIN)/python -P -m pytest -n $(JOBS) --dist loadfile -m "not slow" $(ARGS)

bench: $(VENV)/.test
	@mkdir -p build && rm -f build/bench.json
	$(BIN)/mim3d bench all --peers --json build/bench.json $(ARGS); code=$$?; \
	  $(BIN)/python -P -m mim3d.bench.regression build/bench.json; exit $$code

docs: $(VENV)/.docs build/names
	$(BIN)/mkdocs build --strict --quiet

lint: $(VENV)/.lint build/names
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror dataio/native/*.[ch]
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(VENV)/.lint
	$(BIN)/ruff format .
	$(BIN)/clang-format -i dataio/native/*.[ch]
	$(BIN)/ruff check --fix .

dev: $(VENV)/.lint $(VENV)/.test build/names
	$(BIN)/pre-commit install

# Type checkers know no setuptools package-dir mapping: they get links under the installed names.
build/names:
	mkdir -p $@/mim3d
	for room in kernels dataio engine bench; do ln -sfn ../../../$$room $@/mim3d/$$room; done
	for file in __init__.py __init__.pyi __main__.py py.typed; do ln -sfn ../../../engine/face/$$file $@/mim3d/$$file; done

# torch first and alone: what is installed later finds it satisfied and leaves the build as it is.
$(VENV)/.torch: constraints.txt
	@$(PYTHON) -c "import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else \
	  'mim3d needs Python 3.11 to 3.13, this is %d.%d: make PYTHON=python3.12 ...' % v)"
	@echo "Setting up $(VENV) ($$($(PYTHON) --version), torch $(TORCH)); a few minutes the first time"
ifeq ($(TORCH),system)
	$(PYTHON) -m venv --system-site-packages $(VENV)
	sed -e '/^torch==/d' -e '/^triton==/d' -e '/^numpy==/d' constraints.txt > $(CONSTRAINTS)
	$(BIN)/python -c "import torch; print('torch==' + torch.__version__)" >> $(CONSTRAINTS)
else
	$(PYTHON) -m venv $(VENV)
	sed -e 's/^torch==.*/torch==$(TORCH)/' $(if $(filter-out 2.13.0,$(TORCH)),-e '/^triton==/d') \
	  constraints.txt > $(CONSTRAINTS)
	$(PIP) install -c $(CONSTRAINTS) torch==$(TORCH) numpy
endif
	$(BUILD) > $(VENV)/torch-build
	touch $@

define install
	$(PIP) install -c $(CONSTRAINTS) -e '.[$(1)]'
	$(2)
	@$(BUILD) | cmp - $(VENV)/torch-build || { echo "an install changed the torch build"; exit 1; }
	touch $@
endef

$(VENV)/.run: $(VENV)/.torch pyproject.toml $(wildcard dataio/native/*.c dataio/native/*.h)
	$(call install,study$(comma)cuda$(CUDA))

# What tests compare with comes without its dependencies, which would bring another torch.
$(VENV)/.test: $(VENV)/.run tests/references.txt
	$(call install,cuda$(CUDA)$(comma)test,$(PIP) install --no-deps -r tests/references.txt)

$(VENV)/.lint: $(VENV)/.test
	$(call install,cuda$(CUDA)$(comma)test$(comma)lint)

$(VENV)/.docs: $(VENV)/.test
	$(call install,cuda$(CUDA)$(comma)test$(comma)docs)

comma := ,

clean:
	rm -rf $(VENV) build dist *.egg-info demo
