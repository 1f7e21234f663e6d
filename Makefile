# mpidl: `make train` trains on sample data, `make test` runs all tests; both set everything up.
SHELL := bash
VENV ?= .venv
PY := $(VENV)/bin/python
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export MPIDL_VENV := $(VENV)

# A laptop, a container or CI may have fewer cores than ranks, and may run as root: that is set
# here, not in the library.
# btl=^ofi: not used on one machine, but closing it takes Open MPI a second at each start.
MPI_ENV := OMPI_MCA_mpi_yield_when_idle=1 OMPI_MCA_btl=^ofi \
           PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe \
           $(if $(filter 0,$(shell id -u)), \
             OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1)
export MPI_ENV
RANKS ?= 2
LIMIT ?= 900
MPIRUN := env $(MPI_ENV) timeout --signal=TERM --kill-after=20 $(LIMIT) mpirun -n $(RANKS)
SAMPLE := data/fashion-mnist
CONFIG ?= scripts/configs/fashion-cnn.toml

.PHONY: help setup data train test test-unit test-mpi test-fresh test-slurm test-gpu test-peer \
        setup-peers soak lint bench lock mpi-env clean distclean kernel-report

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: ## make .venv ready: system and Python packages, parallel h5py, mpidl (idempotent)
	@scripts/setup.sh

data: setup $(addprefix $(SAMPLE)/, train/manifest.json test/manifest.json) ## shard Fashion-MNIST

# Shard again where the format of manifests may have changed
$(SAMPLE)/%/manifest.json: mpidl/data/manifest.py
	@scripts/fashion_mnist.sh $* $(dir $@)

train: data ## train the sample CNN on RANKS=2 ranks (CONFIG=... for another run)
	$(MPIRUN) mpidl train $(CONFIG) --overwrite

test: setup data ## all tests: lint, unit tests, MPI tests, whole jobs, SLURM
	@scripts/test.sh

test-unit: setup ## unit tests only (no MPI launcher)
	@scripts/test.sh unit

test-mpi: setup data ## tests under mpirun with 1, 2, 3 and 4 ranks, and whole jobs
	@scripts/test.sh mpi jobs

test-fresh: setup data ## whole jobs, each command under a new mpirun (JOBS="-k ..." chooses)
	$(MPI_ENV) MPIDL_TEST_POOL=0 $(PY) -m pytest -q --durations=8 --timeout=400 tests/jobs $(JOBS)

test-slurm: setup data ## train through a real SLURM on this machine
	@scripts/test.sh slurm

test-gpu: setup ## kernels, layers, optimizers and models on a real GPU
	MPIDL_TEST_GPU=1 $(PY) -m pytest tests/backend tests/nn tests/optim tests/models \
	  tests/compression tests/train -m "gpu or not gpu" -q \
	  -k "cupy or cuda or 16_bit or mixed_precision or test_passes or test_device"

setup-peers: setup ## install PyTorch and transformers, for comparison only
	@$(PY) -c 'import torch, transformers' 2>/dev/null || \
	  $(PY) -m pip install -qq torch==2.13.0 transformers==5.23.0

kernel-report: setup ## registers and shared memory of the CUDA kernels, into kernels/README.md
	@$(PY) scripts/kernel_report.py

test-peer: setup-peers ## compare a whole step with PyTorch
	@scripts/test.sh peer

soak: setup ## a server under mixed load for SECONDS=3600: flat memory, no leaked descriptor
	env $(MPI_ENV) $(PY) scripts/soak_serve.py --seconds $(or $(SECONDS),3600)

bench: setup-peers data ## all benchmarks, compared with their peers
	@scripts/bench/run.sh

lint: setup ## ruff, mypy for Python 3.11 and 3.12, import-linter
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy --python-version 3.11
	$(VENV)/bin/mypy --python-version 3.12
	$(VENV)/bin/lint-imports

mpi-env:
	@echo '$(MPI_ENV)'

lock: ## renew requirements/dev.txt (needs uv)
	uv pip compile -q --extra dev --generate-hashes --no-emit-index-url --no-emit-find-links \
	  --python-version 3.11 pyproject.toml -o requirements/dev.txt

clean: ## remove what builds and runs have left (keeps .venv)
	rm -rf build *.egg-info runs $(SAMPLE) .pytest_cache .mypy_cache .ruff_cache .hypothesis \
	  .import_linter_cache
	find . -name __pycache__ -not -path './.venv/*' -exec rm -rf {} +

distclean: clean ## also remove .venv and the compiled kernels
	rm -rf $(VENV) kernels/*.so
