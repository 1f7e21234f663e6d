#!/usr/bin/env bash
# fashion_mnist.sh train|test FOLDER: shard the Fashion-MNIST images of the Debian package
# dataset-fashion-mnist, or of the folder FASHION_MNIST, on RANKS ranks in the environment MPI_ENV.
set -euo pipefail
part=$1 out=$2
from=${FASHION_MNIST:-$(dpkg -L dataset-fashion-mnist 2>/dev/null |
    grep -m 1 'train-images-idx3-ubyte.gz' | xargs -r dirname)}
if [ -z "$from" ] || [ ! -d "$from" ]; then
    echo "Fashion-MNIST was not found: apt-get install dataset-fashion-mnist, or set" \
        "FASHION_MNIST to a folder with the four .gz files" >&2
    exit 1
fi
prefix=$part; [ "$part" = test ] && prefix=t10k
# shellcheck disable=SC2086
env ${MPI_ENV:-} timeout 300 mpirun -n "${RANKS:-2}" mpidl shard \
    "$from/$prefix-images-idx3-ubyte.gz" "$from/$prefix-labels-idx1-ubyte.gz" \
    --out "${out%/}" --overwrite
