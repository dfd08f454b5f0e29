# Every target sets up what it needs: Python 3.11 or later and make are enough.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# The tests start the program some hundred times.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test lint check lab torture bench docs captures man wheel clean

demo: $(STAMP)
	$(BIN)/upcall-trace demo

test: lint check lab $(VENV)/node/.installed
	$(BIN)/python -m pytest -n auto --dist worksteal

# Where it cannot be set up, the live tests are skipped and say why.
lab: $(STAMP)
	$(BIN)/upcall-trace lab setup --install || echo 'make: the live tests will be skipped'

# A validator for the HTML report, where npm is; its test is skipped elsewhere.
$(VENV)/node/.installed: $(STAMP)
	if command -v npm >/dev/null; then npm install --silent --prefix $(VENV)/node html-validate; fi
	mkdir -p $(VENV)/node && touch $@

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

check: $(STAMP)
	$(BIN)/mypy

torture: $(STAMP)
	$(BIN)/python -m pytest -m torture --timeout 3600

bench: $(STAMP)
	$(BIN)/python -m benchmarks

docs: $(STAMP)
	$(BIN)/python -m tools.generate_docs
	$(BIN)/python -m tools.make_schemas
	$(BIN)/python -m tools.make_pictures

captures: $(STAMP)
	$(BIN)/python -m tools.generate_captures

man: $(STAMP)
	$(BIN)/python -m tools.make_man

wheel: $(STAMP)
	$(BIN)/python -m pip wheel --quiet --no-deps -w dist .

clean:
	rm -rf $(VENV) dist .mypy_cache .pytest_cache .ruff_cache

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test]'
	touch $@
