# pbs-policy. `make demo` shows it at work, `make test` checks it: each sets itself up, in a virtual environment of its own.

PYTHON ?= python3
# Without the compiled files each worker of the tests, and each process they start, compiles everything again.
unexport PYTHONDONTWRITEBYTECODE
VENV := .venv
BIN := $(VENV)/bin
FOR_DEMO := $(VENV)/.for-demo
FOR_TEST := $(VENV)/.for-test

.PHONY: bench check clean deb demo demo-real faults fuzz help man matrix pythons test test-all wheel

help:
	@echo 'make demo       see it work: refused, login, permitted, refused again (under 10 s)'
	@echo 'make demo-real  the same through a private Postfix and Dovecot (installed, as root)'
	@echo 'make test       ruff, mypy --strict and the tests, but for those that take long by their nature'
	@echo 'make test-all   the same with those'
	@echo 'make fuzz       each place where bytes of others come in, a minute each; the decision against its model'
	@echo 'make bench      speed, memory, cost of a login, consistency: benchmarks/RESULTS.md (half an hour)'
	@echo 'make faults     every fault, through Postfix and Dovecot, at length: docs/faults.md (20 minutes, as root)'
	@echo 'make man        write the manual pages anew: docs/man'
	@echo 'make wheel      a wheel in dist/, with script, examples and manual pages'
	@echo 'make deb        a Debian package in dist/ (apt-get build-dep . installs what it takes)'
	@echo 'make matrix     the story on Debian 12 and 13, from wheel and package (root, debootstrap; 20 minutes)'
	@echo 'make pythons    the tests on every Python that is here, and in both Debians (an hour)'
	@echo 'make clean      remove what the others made'

demo: $(FOR_DEMO)
	@$(BIN)/pbs-policy demo

demo-real: $(FOR_DEMO)
	@$(BIN)/pbs-policy demo --real

# More processes than cores, because half of the tests' time is waiting: on two cores six take a fifth less than four.
PYTEST := $(BIN)/python -m pytest --quiet --numprocesses=6 --dist=worksteal

test: check
	$(PYTEST)

test-all: check
	$(PYTEST) -m ''

fuzz: $(FOR_TEST)
	-$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[fuzz]'
	$(BIN)/python -m tests.fuzz.run $(FUZZ)
	$(BIN)/python -m tests.fuzz.reports 1000000
	PBS_MODEL_EXAMPLES=500 $(BIN)/python -m pytest -q --timeout=0 tests/test_decision_model.py

bench: $(FOR_TEST)
	$(BIN)/python -m benchmarks $(BENCH)

faults: $(FOR_TEST)
	$(BIN)/python -m tests.faults $(FAULTS)

man: $(FOR_TEST)
	$(BIN)/python docs/man/make.py

wheel: $(BIN)/python
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .
	@ls dist/*.whl

# In a copy, so that the checkout stays as it is; debian/control says what has to be installed.
deb:
	rm -rf build/deb && mkdir -p build/deb/pbs-policy dist
	tar -c --exclude-vcs --exclude=__pycache__ --exclude='.*_cache' --exclude=.hypothesis --exclude=./.venv \
	  --exclude=./build --exclude=./dist . | tar -x -C build/deb/pbs-policy
	cd build/deb/pbs-policy && dpkg-buildpackage -us -uc -b
	mv build/deb/*.deb dist/
	@ls dist/*.deb

# The story on Debian 12 and 13, each in a tree of its own below build/matrix: minutes, and root.
matrix: $(FOR_TEST)
	$(BIN)/python -m tests.matrix stories $(MATRIX)

pythons: $(FOR_TEST)
	$(BIN)/python -m tests.matrix pythons $(MATRIX)

check: $(FOR_TEST)
	$(BIN)/ruff check .
	$(BIN)/mypy

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo 'pbs-policy needs Python 3.11 or newer: make PYTHON=/path/of/python3.11 ...' >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo 'Python cannot make virtual environments here: apt-get install python3-venv' >&2; exit 1; }
	@echo 'Setting up $(VENV), once ...'
	@$(PYTHON) -m venv $(VENV)

$(FOR_DEMO): $(BIN)/python pyproject.toml
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[demo]'
	@touch $@

$(FOR_TEST): $(BIN)/python pyproject.toml
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	@$(BIN)/python -m pytest --quiet --collect-only >/dev/null || true  # compiled once, not by each process of the tests
	@touch $@

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
