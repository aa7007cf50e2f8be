# Everything runs in environments that these rules make: .venv (pinned), .venv-latest (the newest torch) and
# .venv-lowest (the oldest of everything).
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
LATEST := .venv-latest
LOWEST := .venv-lowest
DOCS   := .venv-docs
RELEASE := .venv-release
CASES  ?= 3000
SEED   ?= 1
FAST   := attacks/test_losses attacks/test_own_threat attacks/test_threats cli/test_console cli/test_flags core/test_gate \
          core/test_modes core/test_rng core/test_schedules core/test_types core/test_validation models/test_models \
          recipes/test_recipes records/test_results records/test_statistics report/test_figures \
          training/test_checkpoint training/test_optimizers test_lowest
PIP    := -m pip install --quiet --disable-pip-version-check

EXTRA  := -c 'import sys, tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"][sys.argv[1]], sep="\n")'

.PHONY: demo test test-fast fuzz mutants structure check format test-latest test-lowest docs dist sbom clean

demo: $(VENV)/.run ## train a small robust classifier and evaluate it
	$(BIN)/sparring train quickstart --out runs/demo --overwrite
	$(BIN)/sparring evaluate runs/demo

# Commands that tests start would otherwise compile all they import again.
unexport PYTHONDONTWRITEBYTECODE

test: $(VENV)/.dev ## all tests, two processes of one thread each
	$(BIN)/python -m pytest -n 2 --dist worksteal

test-fast: $(VENV)/.dev ## most tests, without trainings: under a minute on two cores
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

fuzz: $(VENV)/.dev ## the fuzzers at length: copies of models, weights files, JSON, arrays, data files
	$(BIN)/python -m pytest -n 2 tests/acceleration/test_fuzz_copies.py tests/records/test_fuzz_files.py tests/data/test_data_faults.py \
		--fuzz $(CASES) --fuzz-seed $(SEED)

mutants: $(VENV)/.dev ## single changes of the core, drawn by SEED, that tests should catch
	$(BIN)/python tools/mutants.py --count 25 --seed $(SEED)

structure: $(VENV)/.dev ## rooms, imports between them, the shape of the code
	$(BIN)/python tools/structure.py

check: $(VENV)/.dev ## format, lint, types, rooms, public docstrings
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python tools/docstrings.py

format: $(VENV)/.dev ## mend what can be mended
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test-latest: ## the tests with the newest torch, torchvision and timm
	$(PYTHON) -m venv $(LATEST)
	$(LATEST)/bin/python $(PIP) --upgrade torch torchvision timm lightning accelerate transformers
	$(LATEST)/bin/python $(PIP) --editable '.[dev]'
	$(LATEST)/bin/python -m pytest -n 2 --dist worksteal

# Warnings are no errors here: old releases warn of what they depend on, whose versions nothing bounds.
test-lowest: ## the fast tests with every lower bound of pyproject.toml
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python tools/lowest.py > $(LOWEST)/pins.txt
	$(LOWEST)/bin/python $(PIP) --requirement $(LOWEST)/pins.txt
	$(LOWEST)/bin/python $(PIP) --no-deps --editable .
	$(LOWEST)/bin/python -m pytest -o filterwarnings=default $(FAST:%=tests/%.py)

# The reference is made from the source text, so the site needs neither torch nor the package.
docs: ## the documentation site, in site/, checked: links, anchors of all public names, no warning, no network
	$(PYTHON) -m venv --clear $(DOCS)
	$(DOCS)/bin/python $(EXTRA) docs > $(DOCS)/docs.txt
	PIP_CONSTRAINT=constraints.txt $(DOCS)/bin/python $(PIP) --requirement $(DOCS)/docs.txt
	$(DOCS)/bin/python tools/notebooks.py check
	$(DOCS)/bin/python tools/documentation.py
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --strict --quiet
	$(DOCS)/bin/python tools/documentation.py check

dist: $(RELEASE)/.made ## the wheel and the source distribution, in dist/, checked
	rm -rf dist
	$(RELEASE)/bin/python -m build
	$(RELEASE)/bin/twine check --strict dist/*

sbom: $(RELEASE)/.made $(VENV)/.run ## the packages that an installation consists of, as CycloneDX, in dist/sparring.cdx.json
	mkdir -p dist
	$(RELEASE)/bin/cyclonedx-py environment --pyproject pyproject.toml --output-file dist/sparring.cdx.json $(BIN)/python

$(RELEASE)/.made: pyproject.toml constraints.txt
	$(PYTHON) -m venv --clear $(RELEASE)
	$(RELEASE)/bin/python $(EXTRA) release > $(RELEASE)/release.txt
	PIP_CONSTRAINT=constraints.txt $(RELEASE)/bin/python $(PIP) --requirement $(RELEASE)/release.txt
	touch $@

$(VENV)/.python:
	$(PYTHON) -c 'import sys; sys.exit("sparring needs Python 3.11 or newer, not " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.run: $(VENV)/.python pyproject.toml constraints.txt
	PIP_CONSTRAINT=constraints.txt $(BIN)/python $(PIP) --editable .
	touch $@

$(VENV)/.dev: $(VENV)/.run
	PIP_CONSTRAINT=constraints.txt $(BIN)/python $(PIP) --editable '.[dev]'
	touch $@

clean: ## the environments and caches, not your runs
	rm -rf $(VENV) $(LATEST) $(LOWEST) $(DOCS) $(RELEASE) .site site dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
