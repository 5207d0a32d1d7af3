# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint docs clean

# The demo needs the package alone; tests, lint and the documentation need every extra.
$(VENV)/.light: pyproject.toml bench/pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("make needs Python 3.11 or newer, as its pinned versions do: make $(MAKECMDGOALS) PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch numpy
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[demo]'
	touch $@

$(VENV)/.ready: $(VENV)/.light
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]' --editable ./bench
	# For the series in the files of the one and the detectors of the other; their own pins are others.
	$(BIN)/pip install --quiet --no-deps aeon==1.6.0 pytorch-ood==0.4.0
	touch $@

demo: $(VENV)/.light
	$(BIN)/covary demo --out runs/demo

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

lint: $(VENV)/.ready
	$(BIN)/ruff check src bench tests
	$(BIN)/pyright
	$(BIN)/lint-imports

# The documentation site, in site/.
docs: $(VENV)/.ready
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) build dist site bench/build bench/dist
