# Everything runs in .venv, which is created on first use: `make demo` and `make test` work in a fresh clone.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: help demo cluster-demo docs notebook test check format lint types imports bench faults gpu gpu-training gpu-inference clean

help:
	@echo 'make demo          train SwAV on handwritten digits, evaluate, export and time it (three to six minutes on a CPU)'
	@echo 'make cluster-demo  kill one of two workers and resume: are the weights equal? (about three minutes on 2 cores)'
	@echo 'make test          run the tests'
	@echo 'make docs          build the documentation site in build/site'
	@echo 'make notebook      run docs/quickstart.ipynb as a test (about two minutes)'
	@echo 'make check         lint, types, import rules, then the tests: what continuous integration runs'
	@echo 'make format        format the code'
	@echo 'make bench         measure speed side by side with the alternatives'
	@echo 'make faults        kills, full disks and damaged files by the thousand (under an hour)'
	@echo 'make gpu           on a GPU machine: training step, engines, parity and speed of EXPORTED=folder'
	@echo '                   (make gpu-training and make gpu-inference run the halves)'
	@echo 'make clean         remove environments and caches; runs/ is kept'
	@echo 'PYTHON=python3.12  selects the interpreter of .venv: 3.11, 3.12 or 3.13'

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if (3, 11) <= v[:2] <= (3, 13) else \
		"swav-tf needs Python 3.11, 3.12 or 3.13; $(PYTHON) is %d.%d. Choose another: make PYTHON=python3.12 ..." % v[:2])'
	@echo 'Installing into .venv (TensorFlow is large: some minutes the first time) ...'
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[train,export,serve,dev]'
	@touch $@

demo: $(INSTALLED)
	@$(BIN)/swav-tf demo

cluster-demo: $(INSTALLED)
	@$(BIN)/python deploy/cluster_demo.py

# Three processes on two cores: most of a test is tracing, which takes one core, and some tests wait. The tests of a file
# stay in one process, because they share fixtures. Bytecode is written even if the environment says otherwise: each of a
# hundred processes would compile all modules again.
test: $(INSTALLED)
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder

notebook: $(INSTALLED)
	$(BIN)/python -m pytest tests/test_quickstart.py -m notebook

# An environment without TensorFlow: the API reference reads the source. The site's folder has the repository's own files,
# in the same places, so links between them hold on the site too.
.venv-docs/.installed: pyproject.toml
	@$(PYTHON) -m venv .venv-docs
	@.venv-docs/bin/python -m pip install -qq --disable-pip-version-check -e '.[docs]'
	@touch $@

docs: .venv-docs/.installed
	@mkdir -p build/site-source
	@for file in README.md CONTRIBUTING.md CHANGELOG.md docs deploy; do ln -sfn ../../$$file build/site-source/$$file; done
	@NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --quiet
	@echo 'Open build/site/index.html'

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
	$(BIN)/python -m pytest tests/faults -m faults --numprocesses 2 --dist worksteal

# On a GPU machine: training, then exported files; each writes a JSON file to bring back.
gpu: gpu-training gpu-inference

.venv-gpu-training/.installed: pyproject.toml
	@$(PYTHON) -m venv .venv-gpu-training
	@.venv-gpu-training/bin/python -m pip install -qq --disable-pip-version-check -e '.[train,gpu]'
	@touch $@

gpu-training: .venv-gpu-training/.installed
	@.venv-gpu-training/bin/python -m benchmarks.gpu
	@.venv-gpu-training/bin/swav-tf profile -c one_gpu -o train.accumulation_steps=1 --json > gpu-profile.json

EXPORTED ?= exported

# A separate environment without TensorFlow. If TensorRT is not available, its rows are skipped with the reason.
.venv-gpu/.installed: pyproject.toml
	@$(PYTHON) -m venv .venv-gpu
	@.venv-gpu/bin/python -m pip install -qq --disable-pip-version-check -e '.[onnx-gpu,report]'
	@.venv-gpu/bin/python -m pip install -qq --disable-pip-version-check -e '.[onnx-gpu,report,tensorrt]' || \
		echo 'TensorRT could not be installed: its rows will be skipped.'
	@touch $@

gpu-inference: .venv-gpu/.installed
	@status=0; \
	for file in $$(ls $(EXPORTED)/*.onnx | grep -v -- -cpu.onnx); do \
		.venv-gpu/bin/swav-tf export $$file --to tensorrt --batch 1,32,128 --output $(EXPORTED) || status=1; \
	done; \
	.venv-gpu/bin/swav-tf verify $(EXPORTED) --batch 128 || status=1; \
	.venv-gpu/bin/swav-tf benchmark $(EXPORTED) --runner ort-cuda,ort-tensorrt,tensorrt \
		--json gpu-results.json --html gpu-results.html || status=1; \
	exit $$status

clean:
	rm -rf .venv .venv-docs .venv-gpu .venv-gpu-training build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
