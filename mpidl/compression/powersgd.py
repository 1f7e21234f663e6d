"""PowerSGD: a bucket as a matrix, approximated by two thin factors that are all-reduced (Vogels et al., 2019).

One step of power iteration from the factor of the step before. Needs error feedback.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpidl.collectives import Group, all_reduce
from mpidl.compression.compressor import Compressor


class PowerSGD(Compressor):
    """rank: columns of the factors. A bucket of n elements becomes a matrix as square as possible, filled up with zeros."""

    def __init__(self, rank: int = 4, seed: int = 0) -> None:
        super().__init__()
        if rank < 1:
            raise TypeError(f"rank is {rank}, but must be at least 1")
        self.rank, self.seed = rank, seed
        self._factors: dict[str, NDArray[Any]] = {}

    def reduce(self, values: NDArray[Any], group: Group, key: str) -> None:
        """All-reduce of (rows + columns) x rank elements instead of rows x columns."""
        columns = max(1, int(np.sqrt(values.size)))
        rows = -(-values.size // columns)
        rank = min(self.rank, rows, columns)
        q = self._factors.get(key)
        if q is None or q.shape != (columns, rank):
            q = np.random.default_rng(self.seed).standard_normal((columns, rank)).astype(np.float32)
        flat = np.zeros(rows * columns, np.float32)
        flat[: values.size] = values
        matrix = flat.reshape(rows, columns)
        p = np.ascontiguousarray(matrix @ q)
        all_reduce(p.reshape(-1), comm=group, name=key)
        p = np.ascontiguousarray(np.linalg.qr(p)[0], np.float32)
        q = np.ascontiguousarray(matrix.T @ p)
        self._own = (p, q.copy())
        all_reduce(q.reshape(-1), comm=group, name=key)
        self.sent += 2 * (group.size - 1) * (p.nbytes + q.nbytes) // group.size
        self._factors[key] = q
        values[...] = (p @ q.T).reshape(-1)[: values.size]

    def own(self, values: NDArray[Any]) -> NDArray[Any]:
        """This rank's share of the approximation: the projection of its own matrix."""
        p, q = self._own
        share: NDArray[Any] = (p @ q.T).reshape(-1)[: values.size]
        return share
