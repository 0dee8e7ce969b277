# `make demo` and `make test` each work on a fresh machine with Python 3.11 or 3.12. VENV=... puts the environment
# elsewhere, PYTHON=... chooses the interpreter it is made with.
VENV ?= .venv
export VENV

.PHONY: install demo test lint clean

install:
	@scripts/install.sh

demo: install
	@scripts/demo.sh

test: install
	@scripts/test.sh $(ARGS)

# make example-e4t, example-domain_agnostic, example-profusion, example-taming, example-dreambooth, example-lora,
# example-textual_inversion: docs/methods
example-%: install
	@scripts/example.sh $*

lint: install
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/python scripts/lint_imports.py

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
