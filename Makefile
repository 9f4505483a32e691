# make lab     learn: installs on the first call, then opens your own copy of the notebooks in JupyterLab
# make test    check everything, as CI does
# The other targets are listed in CONTRIBUTING.md. Python of your choice: make lab PYTHON=python3.12
# Linux without an NVIDIA GPU: README.md says how to take PyTorch's CPU build, 0.2 GB in place of 3.

.DEFAULT_GOAL := help
.PHONY: help lab test lint unit check-notebooks notebooks bench browser constraints address clean

ifeq ($(OS),Windows_NT)
PYTHON ?= python
BIN := .venv/Scripts
else
PYTHON ?= python3
BIN := .venv/bin
endif
RUN := $(BIN)/python -X utf8
PIP := $(RUN) -m pip install --disable-pip-version-check -c constraints.txt

help:
	@sed -n 's/^# //p' Makefile

# The two stamps keep a second call quick: pip runs again only after pyproject.toml or constraints.txt has changed.
.venv/stamp-python:
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and f'the course needs Python 3.11 or newer; {sys.executable} is {sys.version.split()[0]}. Try: make $(MAKECMDGOALS) PYTHON=python3.12')"
	$(PYTHON) -m venv .venv
	@touch $@

.venv/stamp-lab: .venv/stamp-python pyproject.toml constraints.txt
	@echo "installing the course and JupyterLab into .venv (some minutes, once)"
	$(PIP) -e ".[lab]"
	@touch $@

.venv/stamp-dev: .venv/stamp-python pyproject.toml constraints.txt
	@echo "installing the course and its development tools into .venv (some minutes, once)"
	$(PIP) -e ".[dev]"
	@touch $@ .venv/stamp-lab

lab: .venv/stamp-lab
	$(RUN) -m llmcourse.cli doctor
	$(RUN) -m llmcourse.cli lab $(LAB)

test: lint unit check-notebooks

lint: .venv/stamp-dev
	$(RUN) -m ruff check
	$(BIN)/lint-imports
	$(RUN) -m llmcourse.cli address --check

# Two processes with one thread each: more threads than cores run many times slower. A file stays whole: its kernels start once.
unit: .venv/stamp-dev
	OMP_NUM_THREADS=1 $(RUN) -m pytest -q -n 2 --dist loadfile tests

check-notebooks: .venv/stamp-dev
	$(RUN) tests/notebooks/check.py

notebooks: .venv/stamp-dev
	$(RUN) -m llmcourse.cli run --save $(NOTEBOOKS)

bench: .venv/stamp-dev
	$(RUN) -m benchmarks $(RACES)

browser: .venv/stamp-dev
	$(RUN) -m playwright install chromium

constraints: .venv/stamp-dev
	$(RUN) tools/constraints.py

address: .venv/stamp-dev
	$(RUN) -m llmcourse.cli address

clean:
	rm -rf build dist .pytest_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -not -path "./.venv/*" -prune -exec rm -rf {} +
