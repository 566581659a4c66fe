# `make study`: set up and run the embedded quick study, ending in a report.
# `make test`: set up and run the checks that CI runs.
PYTHON ?= python3
BIN := .venv/bin
ARGS ?=

.PHONY: study test test-all clean

study: .venv/ready
	$(BIN)/potstill study $(ARGS)

test: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -q -n 2 -m "not slow"

test-all: .venv/ready
	@echo "make test, and beside it:"
	@$(BIN)/pytest -q --collect-only -m slow | grep :: | sed 's/^/  /'
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -q -n 2

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

clean:
	rm -rf .venv runs
