#!/usr/bin/env bash
# All benchmarks, each beside its peer in one run. Times depend on the machine: read the ratios.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
export OMP_NUM_THREADS=1
python scripts/bench/loader.py
for model in mlp cnn resnet18 gpt; do
    # shellcheck disable=SC2086
    env ${MPI_ENV:-} timeout 900 mpirun -n 2 \
        python scripts/bench/train_step.py --model "$model" --peer torch
done
# shellcheck disable=SC2086
env ${MPI_ENV:-} timeout 600 mpirun -n 2 \
    python scripts/bench/collectives.py --plot runs/all-reduce.png
# shellcheck disable=SC2086
env ${MPI_ENV:-} timeout 100 mpirun -n 2 python scripts/bench/asynchronous.py
# shellcheck disable=SC2086
env ${MPI_ENV:-} timeout 900 mpirun -n 2 python scripts/bench/compression.py
# shellcheck disable=SC2086
env ${MPI_ENV:-} timeout 300 mpirun -n 2 python scripts/bench/hogwild.py
# shellcheck disable=SC2086
env ${MPI_ENV:-} timeout 900 mpirun -n 2 \
    mpidl compare scripts/configs/fashion-cnn.toml --set train.max_steps=100 --slow 1:5 \
    --strategies "allreduce local_sgd gossip async_gossip:graph=random hogwild" --out runs/compare
if scripts/netns/cluster.sh possible; then
    scripts/netns/cluster.sh up 4 200
    # shellcheck disable=SC2086
    env ${MPI_ENV:-} timeout 600 scripts/netns/cluster.sh run 4 \
        python scripts/bench/network_bound.py
    scripts/netns/cluster.sh down
fi
python scripts/bench/rank_agreement.py
