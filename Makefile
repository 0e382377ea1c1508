# The commands of AI Forge. `make demo` and `make test` need Python 3.11+, git and make; they
# install everything else into .venv.
PYTHON ?= python3
REPO ?= .
QUESTION ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# Two tests at a time, those of one file in their order; the files with the long ones come first.
AT_ONCE := -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: install demo test test-all fuzz lint format docs bench references nano clean

install: $(VENV)/.installed  ## The package and the tools of its developers, into .venv

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: install  ## The whole line on REPO (this repository by default), then a question
	$(BIN)/python scripts/demo.py '$(REPO)' $(if $(QUESTION),--question '$(QUESTION)')

test: install lint  ## Unit and integration tests, with coverage
	$(BIN)/python -m pytest -m 'not e2e and not typescript and not humaneval' $(AT_ONCE) --cov --cov-report=term --cov-report=xml

test-all: install  ## The long ones: wheel in a clean environment, whole lines
	sh scripts/check_wheel.sh $(BIN)/python
	$(BIN)/python -m pytest -m 'e2e' --timeout=1500

fuzz: install  ## The property tests on examples that nobody has tried yet; make test has fixed ones
	$(BIN)/python -m pytest -m hypothesis --hypothesis-profile=explore --timeout=3600

lint: install  ## Style, types, generated files
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m forge_mcp.interfaces.catalogue --check
	$(BIN)/python scripts/generate_docs.py --check

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: install  ## Write skills.yaml and the generated pages of docs anew
	$(BIN)/python -m forge_mcp.interfaces.catalogue
	$(BIN)/python scripts/generate_docs.py

bench: install  ## Every benchmark; see docs/benchmarks.md
	for file in benchmarks/*.py; do $(BIN)/python $$file || exit 1; done

references: install  ## Peers in an environment of their own write the reference outputs that tests read
	$(PYTHON) -m venv .venv-references
	.venv-references/bin/python -m pip install --quiet --requirement scripts/references/requirements.txt
	.venv-references/bin/python -m pip install --quiet --no-deps codebleu==0.7.0
	.venv-references/bin/python scripts/references/write.py tests/fixtures/references
	$(PYTHON) -m venv .venv-converter
	CMAKE_ARGS=-DLLAVA_BUILD=OFF .venv-converter/bin/python -m pip install --quiet --requirement scripts/references/requirements-converter.txt
	for name in gguf_conversion gguf_quantization tokenizers_in_gguf; do \
		.venv-converter/bin/python scripts/references/$$name.py tests/fixtures/references || exit 1; done

nano:  ## The environment in which forge-nano is pre-trained (scripts/nano)
	$(PYTHON) -m venv .venv-nano
	.venv-nano/bin/python -m pip install --quiet --requirement scripts/nano/requirements.txt

clean:
	rm -rf $(VENV) .venv-references .venv-converter .demo build dist *.egg-info coverage.xml .coverage*
