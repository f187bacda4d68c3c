# Verbs. Each sets up what it needs: with only Python 3.11+ and git, `make demo` and `make test` work.
.DEFAULT_GOAL := help
.PHONY: help demo test check bench lock image clean

export UV_PYTHON_PREFERENCE ?= only-system
UV := $(shell command -v uv 2>/dev/null || echo .uv/bin/uv)
PYTHON := .venv/bin/python
STORE := medssl-store

help: ## this list
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 16

demo: .venv/ready ## the main job, small: generated images, minutes on 2 cores, no network
	$(PYTHON) sweeps/demo.py --store $(STORE)

test: .venv/ready ## all tests that this machine can run; with MEDSSL_LONG=1 those of minutes too
	$(PYTHON) -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations 12

check: .venv/ready ## format and lint, changing nothing
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .

bench: .venv/ready ## speed, as ratios measured in one run; JSON in tests/benchmarks/results
	@for file in tests/benchmarks/bench_*.py; do echo "== $$file"; $(PYTHON) $$file || exit 1; done

lock: .uv/ready ## pin the newest versions in requirements.lock, without naming a host
	$(UV) pip compile --quiet --upgrade --universal --group dev --extra server pyproject.toml \
	  --no-emit-index-url --no-annotate --no-header --output-file requirements.lock

image: ## medssl:VERSION, for deploy/; with its commit, since an image has no git
	docker build --tag "medssl:$$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)" \
	  --build-arg COMMIT="$$(git describe --always --dirty=.dirty --exclude='*')" .

clean: ## the environment, not the results
	rm -rf .venv .uv

.uv/ready:
	@mkdir -p .uv
	@command -v uv >/dev/null || test -x .uv/bin/uv || \
	  { python3 -m venv .uv && .uv/bin/pip install --quiet --disable-pip-version-check uv; } || \
	  { echo "uv is missing and could not be installed: see docs.astral.sh/uv, or on Debian:" \
	    "apt-get install python3-venv"; exit 1; }
	@touch $@

.venv/ready: pyproject.toml requirements.lock | .uv/ready
	@test -x $(PYTHON) || $(UV) venv --quiet --python ">=3.11" .venv
	$(UV) pip install --quiet --python .venv --no-deps -r requirements.lock
	$(UV) pip install --quiet --python .venv --no-deps --editable .
	@touch $@
