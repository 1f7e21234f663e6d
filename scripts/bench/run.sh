#!/usr/bin/env bash
# All benchmarks, each beside its peer in one run. Times depend on the machine: read the ratios.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
export OMP_NUM_THREADS=1
python scripts/bench/loader.py
for model in mlp cnn; do
    # shellcheck disable=SC2086
    env ${MPI_ENV:-} timeout 600 mpirun -n 2 python scripts/bench/train_step.py --model "$model" --peer torch
done
python scripts/bench/rank_agreement.py
