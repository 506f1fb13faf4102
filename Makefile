# Every command once; CI is this list.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: native
native:  ## compile kernels/ into the working tree (development)
	cmake -S . -B build/dev -DPython_EXECUTABLE=$$(command -v $(PYTHON)) >/dev/null
	cmake --build build/dev -j2
	cp build/dev/kernels/_native*.so tarragon_hpc/
