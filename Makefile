# Checks of a change. Needs the test extras: pip install -c constraints.txt -e '.[test]'
PYTHON ?= $(if $(wildcard .venv/bin/python),.venv/bin/python,python)
export HF_HUB_OFFLINE = 1
export OMP_NUM_THREADS = 1

.PHONY: check lint types test fuzz format wheel

check: lint types test

lint:
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

types:
	$(PYTHON) -m mypy

test:
	$(PYTHON) -m pytest -n 2 --dist worksteal

fuzz:
	$(PYTHON) -m tests.fuzz --inputs 10000

format:
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

wheel:
	$(PYTHON) -m pip wheel --no-deps --wheel-dir dist .
