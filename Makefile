# Two commands set everything up on a machine with Python 3.11 or newer: `make demo` and `make test`.
PYTHON ?= python3
# torch is installed first and by itself, so that a build of your own choosing is kept: make test TORCH="torch==2.10.0"
TORCH ?= torch==2.13.0
BIN := .venv/bin
RUN ?= runs/demo-$(shell date +%Y%m%d-%H%M%S)

.PHONY: demo test torture check docs wheel release reproducible audit oldest newest clean

demo: .venv/demo.done
	$(BIN)/dt train hopper/replay-v0 --preset demo --output $(RUN)

test: .venv/test.done
	$(BIN)/python -m pytest $(PYTEST)

torture: .venv/test.done
	$(BIN)/python -m pytest -m torture

check: .venv/dev.done
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# the site, into build/site; warnings are errors (strict in mkdocs.yml), which --quiet would hide from mkdocs too
docs: .venv/docs.done
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build

wheel: .venv/dev.done
	$(BIN)/python -m build --outdir dist .

# sdist and wheel in dist/release/, checked; then the demo, trained from the wheel in an empty environment elsewhere.
# make release STEPS=200 trains the demo for fewer steps; TAG=v0.1.0 compares version, changelog and citation with it
release: .venv/dev.done
	rm -rf dist/release
	$(BIN)/python -m build --outdir dist/release .
	$(BIN)/python -m twine check --strict dist/release/*
	$(BIN)/python .ci/release.py dist/release --try --torch "$(TORCH)" $(if $(STEPS),--steps $(STEPS)) $(if $(TAG),--tag $(TAG))

# the second time from a copy, whose files are newer
reproducible: .venv/dev.done
	rm -rf dist/first dist/second dist/copy && mkdir -p dist/copy
	cp -R dt transformer envs pyproject.toml README.md LICENSE dist/copy
	$(BIN)/python -m build --wheel --outdir dist/first .
	$(BIN)/python -m build --wheel --outdir dist/second dist/copy
	cmp dist/first/*.whl dist/second/*.whl && sha256sum dist/first/*.whl

# strict: a package that cannot be audited is an error, so the number is that of those that were
audit: .venv/dev.done
	$(BIN)/python -m pip freeze --exclude-editable | sed 's/+[a-z0-9.]*$$//' > .venv/frozen.txt
	$(BIN)/python -m pip_audit --strict --disable-pip --no-deps --requirement .venv/frozen.txt
	@echo "$$(wc -l < .venv/frozen.txt) packages audited"

# the lowest version of everything that pyproject.toml asks for: make oldest TORCH="torch==2.10.0"
oldest:
	$(PYTHON) -m venv .oldest
	.oldest/bin/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(PYTHON) .ci/lowest.py > .oldest/lowest.txt
	.oldest/bin/python -m pip install --quiet --disable-pip-version-check --constraint .oldest/lowest.txt --editable ".[test]"
	.oldest/bin/python -m pytest

# the highest version of everything there is; torch is as asked for, the highest with: make newest TORCH=torch
newest:
	$(PYTHON) -m venv .newest
	.newest/bin/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	.newest/bin/python -m pip install --quiet --disable-pip-version-check --upgrade --upgrade-strategy eager "$(TORCH)" --editable ".[test]"
	.newest/bin/python -m pytest

clean:
	rm -rf .venv .oldest .newest dist build .pytest_cache .mypy_cache .ruff_cache

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

.venv/docs.done: .venv/torch.done pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[docs]"
	touch $@
