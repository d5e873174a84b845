# Everything runs in .venv, which is made on first use: `make demo` and `make test` work in a fresh clone.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: help demo cluster-demo test check format lint types imports bench faults gpu gpu-training gpu-inference clean

help:
	@echo 'make demo    train SwAV on handwritten digits, measure, export and time it: one page (about five minutes on a CPU)'
	@echo 'make cluster-demo  two workers, one is killed, both go on: with the same weights? (about three minutes on 2 cores)'
	@echo 'make test    run the tests'
	@echo 'make check   lint, types, import law, then the tests: what continuous integration runs'
	@echo 'make format  format the code'
	@echo 'make bench   measure speed side by side with the alternatives'
	@echo 'make faults  kills, full disks, damaged files: each is told in words or changes nothing (under an hour)'
	@echo 'make gpu     on a GPU machine: the training step in its variants, then engines, parity and speed of'
	@echo '             EXPORTED=folder; each alone: make gpu-training, make gpu-inference (without TensorFlow)'
	@echo 'make clean   remove environments and caches; runs/ stays'

$(INSTALLED): pyproject.toml constraints.txt
	@echo 'Installing into .venv (TensorFlow is large: some minutes the first time) ...'
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[train,export,dev]'
	@touch $@

demo: $(INSTALLED)
	@$(BIN)/swav-tf demo

cluster-demo: $(INSTALLED)
	@$(BIN)/python deploy/cluster_demo.py

# Two processes: most of a test is tracing, which takes one core. The tests of a file stay together and in order, as they
# share fixtures; files are taken in order, in which the longest are not last.
test: $(INSTALLED)
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

check: lint types imports test

lint: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(INSTALLED)
	$(BIN)/mypy

imports: $(INSTALLED)
	$(BIN)/lint-imports

format: $(INSTALLED)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(INSTALLED)
	$(BIN)/python -m benchmarks

faults: $(INSTALLED)
	$(BIN)/python -m faults

# On a GPU machine: what training does there, then what exported files do, each with a JSON to bring back.
gpu: gpu-training gpu-inference

.venv-gpu-training/.installed: pyproject.toml
	@$(PYTHON) -m venv .venv-gpu-training
	@.venv-gpu-training/bin/python -m pip install -qq --disable-pip-version-check -e '.[train,gpu]'
	@touch $@

gpu-training: .venv-gpu-training/.installed
	@.venv-gpu-training/bin/python -m benchmarks.gpu training

EXPORTED ?= exported

# An environment of its own, without TensorFlow. Where TensorRT cannot be had its rows are skipped with the reason.
.venv-gpu/.installed: pyproject.toml
	@$(PYTHON) -m venv .venv-gpu
	@.venv-gpu/bin/python -m pip install -qq --disable-pip-version-check -e '.[onnx-gpu,report]'
	@.venv-gpu/bin/python -m pip install -qq --disable-pip-version-check -e '.[onnx-gpu,report,tensorrt]' || \
		echo 'TensorRT could not be installed: its rows will be skipped.'
	@touch $@

gpu-inference: .venv-gpu/.installed
	@.venv-gpu/bin/python -m benchmarks.gpu inference $(EXPORTED)

clean:
	rm -rf .venv .venv-gpu .venv-gpu-training build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
