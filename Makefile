# A bare Debian or Ubuntu with Python 3.11 or newer, or macOS, needs nothing but `make demo` or `make test`.
#
#   make demo     tune the embedded model towards real music and show the page with the result
#   make test     every check and the whole test suite, on the CPU
#   make check    ruff, pyright, import-linter, codespell
#   make bench    the committed benchmarks again
#   make table    tune for each of twenty rewards and judge every model by all of them (hours on two cores; resumable)
#   make table-small   four of them
#   make bench-distances   the distances against the packages people use, in a venv of their own
#   make fuzz     50,000 hostile inputs through everything that reads what others wrote (12 minutes on two cores)
#   make lock     write requirements.lock, every dependency with its hashes, from pyproject.toml and constraints.txt
#   make audit    known vulnerabilities of what requirements.lock names
#   make assets   build the embedded model from public-domain scores (hours on a CPU)
#
# PYTHON=python3.12       another interpreter
# TORCH_INDEX=URL         where torch comes from; on Linux without an NVIDIA GPU
#                         TORCH_INDEX=https://download.pytorch.org/whl/cpu saves gigabytes

TORCH := torch==2.13.0
NEWER := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c '$(NEWER)' >/dev/null 2>&1 && echo $$p && break; done)
BIN := .venv/bin
PEERS := .venv-peers/bin
TOOLS := .build/tools/bin
BENCHMARKS := benchmarks/instruments.py benchmarks/kills.py benchmarks/microbatch.py benchmarks/contrast.py
ASSETS := src/dragontune/assets/tiny-music
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check
EDITABLE := $(INSTALL) --no-build-isolation --constraint constraints.txt --editable

.PHONY: demo test check bench bench-distances table table-small fuzz lock audit assets clean

demo: .venv/.stamp-run
	@$(BIN)/dragontune tune recipes/demo.yaml --resume
	@echo "Listen to the result: file://$(CURDIR)/runs/demo/report/index.html"

test: check
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

check: .venv/.stamp-dev
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/pyright
	$(BIN)/codespell

bench: .venv/.stamp-run
	@set -e; for file in $(BENCHMARKS); do echo "$$file"; $(BIN)/python "$$file"; done

table: .venv/.stamp-run
	$(BIN)/python benchmarks/table.py
	$(BIN)/python benchmarks/table_report.py

table-small: .venv/.stamp-run
	$(BIN)/python benchmarks/table.py --only small
	$(BIN)/python benchmarks/table_report.py

bench-distances: .venv-peers/.stamp
	$(PEERS)/python benchmarks/distances.py

fuzz: .venv/.stamp-dev
	$(BIN)/python benchmarks/fuzz.py

lock: .build/tools/.stamp
	$(TOOLS)/uv pip compile pyproject.toml --extra dev --constraint constraints.txt --generate-hashes \
		--python-version 3.11 --python-platform x86_64-manylinux_2_28 --no-header --no-emit-index-url \
		--no-emit-find-links --quiet --output-file requirements.lock

audit: .build/tools/.stamp
	$(TOOLS)/python .ci/audit.py requirements.lock

assets: .venv/.stamp-assets
	$(BIN)/python assets/build.py
	$(BIN)/python assets/ratings.py
	$(BIN)/dragontune fit-aesthetics $(ASSETS)/ratings/ratings.csv --encoder $(ASSETS)/ratings/encoder.yaml \
		--out $(ASSETS)/aesthetics.safetensors

clean:
	rm -rf .venv .venv-peers

# torch first and by itself, because its index may be another one
.venv/.stamp-run: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "dragontune needs Python 3.11 or newer, and none was found: install it, \
	or name it with make PYTHON=/path/to/python"; exit 2; }
	@$(PYTHON) -c '$(NEWER)' || { echo "dragontune needs Python 3.11 or newer, got $$($(PYTHON) --version): \
	name another with make PYTHON=/path/to/python"; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "Python's venv module is missing: \
	install it (Debian and Ubuntu: sudo apt install python3-venv) and run make again"; exit 2; }
	@echo "installing the pinned dependencies into .venv (once, a few minutes)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(INSTALL) $(TORCH) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
	@$(INSTALL) --constraint constraints.txt setuptools
	@$(EDITABLE) .
	@touch $@

.venv/.stamp-dev: .venv/.stamp-run
	@$(EDITABLE) '.[dev]'
	@touch $@

.venv/.stamp-assets: .venv/.stamp-run
	@$(EDITABLE) '.[assets]'
	@touch $@

.build/tools/.stamp: .ci/tools.txt
	@test -x $(TOOLS)/python || $(PYTHON) -m venv .build/tools
	@$(TOOLS)/python -m pip install --quiet --disable-pip-version-check --requirement .ci/tools.txt
	@touch $@

# torch first and alone, the rest without its dependencies: see benchmarks/peers.txt
.venv-peers/.stamp: benchmarks/peers.txt pyproject.toml
	@test -x $(PEERS)/python || $(PYTHON) -m venv .venv-peers
	@$(PEERS)/python -m pip install --quiet --disable-pip-version-check $(TORCH) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
	@$(PEERS)/python -m pip install --quiet --disable-pip-version-check --no-deps --requirement benchmarks/peers.txt
	@$(PEERS)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@
