# Two commands set everything up on a machine with Python 3.11 or newer: `make demo` and `make test`.
PYTHON ?= python3
# torch is installed first and by itself, so that a build of your own choosing is kept: make test TORCH="torch==2.10.0"
TORCH ?= torch==2.13.0
BIN := .venv/bin
RUN ?= runs/demo-$(shell date +%Y%m%d-%H%M%S)

.PHONY: demo test torture check wheel clean

demo: .venv/demo.done
	$(BIN)/dt train hopper/replay-v0 --preset demo --output $(RUN)

test: .venv/test.done
	$(BIN)/python -m pytest

torture: .venv/test.done
	$(BIN)/python -m pytest -m torture

check: .venv/dev.done
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

wheel: .venv/dev.done
	$(BIN)/python -m build --outdir dist .

clean:
	rm -rf .venv dist .pytest_cache .mypy_cache .ruff_cache

.venv/torch.done: Makefile
	$(PYTHON) -c "import sys; assert sys.version_info >= (3, 11), 'Python 3.11 or newer is needed: make PYTHON=python3.12'"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	touch $@

.venv/demo.done: .venv/torch.done pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[mujoco]"
	touch $@

.venv/test.done: .venv/torch.done pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[test]"
	touch $@

.venv/dev.done: .venv/test.done
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	touch $@
