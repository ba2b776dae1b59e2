# Everything happens in .venv, which is made when it is missing and renewed when a requirement changes.
# `make PYTHON=python3.12 test` takes another Python, `make ARGS="-k cache" test` passes arguments on to pytest.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
EDITABLE := $(patsubst %/pyproject.toml,-e ./%,core/pyproject.toml $(wildcard plugins/*/pyproject.toml))
CORES := $(shell n=$$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2); echo $$((n < 8 ? n : 8)))
# One process for each core, each with one thread: all tests as a rule, while ARGS may ask for those that time or fill a machine.
PARALLEL := -n $(CORES) --dist loadfile
REQUIREMENTS := $(wildcard .dev/*.txt) core/pyproject.toml $(wildcard plugins/*/pyproject.toml)

.DEFAULT_GOAL := help
.PHONY: help demo test lint docs packages range clean

help:
	@echo "make demo   a story by speculative decoding, and how much faster it came"
	@echo "make test   the tests that run on any machine"
	@echo "make lint   ruff and mypy"
	@echo "make docs   the documentation as a site, in .site; strict about links"
	@echo "make packages  wheels and sdists of every package in dist, built, checked and tried"
	@echo "make range  the tests on the oldest and the newest torch and transformers (large downloads)"
	@echo "make clean  remove .venv and caches"

demo: $(INSTALLED)
	@$(BIN)/fastllm demo

test: $(INSTALLED)
	@$(BIN)/python -m pytest -q $(if $(ARGS),$(ARGS),$(PARALLEL))

lint: $(INSTALLED)
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy

docs: $(INSTALLED)
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet
	@echo "open .site/index.html"

packages: $(INSTALLED)
	@$(BIN)/python .dev/packages.py

# In environments of their own, .venv-oldest and .venv-newest: .dev/constraints.txt pins what the others use.
range:
	@for end in oldest newest; do \
	  echo "== $$end"; \
	  $(PYTHON) -m venv .venv-$$end && \
	  .venv-$$end/bin/python -m pip install --quiet -c .dev/$$end.txt $(EDITABLE) accelerate peft hypothesis "pytest>=9,<10" "ruff>=0.17,<0.18" && \
	  .venv-$$end/bin/python -m pytest -q $(ARGS) || exit 1; \
	done

clean:
	@rm -rf $(VENV) .venv-oldest .venv-newest .site dist .pytest_cache .ruff_cache .mypy_cache .hypothesis
	@find core plugins tests -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is touched last, so that an interrupted installation is repeated.
$(INSTALLED): $(REQUIREMENTS)
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) was not found; name a Python: make PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("fastllm needs Python 3.11 or later and $(PYTHON) is %d.%d; name another: make PYTHON=python3.12" % sys.version_info[:2])'
	@echo "installing into $(VENV) (a minute or two the first time)"
	@$(BIN)/python -c '' 2>/dev/null || $(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r .dev/requirements.txt
	@touch $@
