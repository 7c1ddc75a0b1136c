# One environment in .venv; every target makes it if it is not there yet.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: install demo test lint types docs claims quickstart bench clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $(INSTALLED)

demo: install
	$(BIN)/guerdon train recipes/quickstart.yaml --overwrite

test: install
	$(BIN)/python -m pytest -n 2

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/pyright

docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

claims: install
	$(BIN)/guerdon claims run --all --jobs 2 --out src/guerdon/catalog/results
	-$(BIN)/guerdon claims run --all --jobs 2 --break --out src/guerdon/catalog/results

quickstart: install
	$(BIN)/python -m guerdon.claims.quickstart

bench: install
	for file in benchmarks/*.py; do $(BIN)/python $$file || exit 1; done

clean:
	rm -rf .venv runs site
