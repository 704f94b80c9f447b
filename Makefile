# Each target only calls a script; scripts/setup works without make as well.
PYTHON = .venv/bin/python

.PHONY: setup demo test test-long prove lint results

setup .venv/ready: pyproject.toml constraints.txt scripts/setup
	scripts/setup

demo: .venv/ready
	$(PYTHON) -m celosia.host.demo

lint: .venv/ready
	$(PYTHON) -m ruff check .

test: .venv/ready lint
	$(PYTHON) scripts/wheel_test
	$(PYTHON) -m pytest -n 2 --dist worksteal -q

test-long: .venv/ready
	$(PYTHON) -m pytest -q -m long

# All proofs, the quick ones of `make test` too.
prove: .venv/ready
	$(PYTHON) -m pytest -n 2 -q -m "" tests/formal

results: .venv/ready
	$(PYTHON) scripts/results
	$(PYTHON) scripts/tables
