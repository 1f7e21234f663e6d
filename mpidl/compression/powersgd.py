"""PowerSGD: each weight matrix is approximated by two thin factors that are all-reduced (Vogels et al., 2019).

One step of power iteration from the factor of the step before. Vectors (biases) travel as they are. Needs error feedback.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpidl.collectives import Group, all_reduce
from mpidl.compression.compressor import Layout, StatelessCompressor, take_all, to_host
from mpidl.optim import RunState
from mpidl.options import Positive


class PowerSGD(StatelessCompressor):
    """rank: columns of the factors. A tensor becomes a matrix with its last axis as columns; without a layout the whole bucket
    becomes one that is nearly square.
    """

    on_device = False

    class Options(StatelessCompressor.Options, frozen=True):
        """Options of powersgd.

        Attributes:
            rank: Columns of the two factors.
            error_feedback: Add what compression leaves out of a step to the next one.
        """

        rank: Positive = 4

    options: Options

    def __init__(self, options: Options | None = None, *, seed: int = 0) -> None:
        super().__init__(options, seed=seed)
        self.rank = self.options.rank
        self._right: dict[str, list[NDArray[Any]]] = {}

    def reduce(self, values: NDArray[Any], group: Group, key: str, layout: Layout = ()) -> None:
        """All-reduce of (rows + columns) x rank elements instead of rows x columns, for each matrix."""
        self.poisoned = not np.isfinite(values).all()
        matrices, vectors = self._matrices(values, layout)
        right = self._right.get(key)
        if right is None:
            generator = np.random.default_rng(self.seed)
            shapes = [(m.shape[1], min(self.rank, *m.shape)) for m in matrices]
            right = [generator.standard_normal(shape).astype(np.float32) for shape in shapes]
        left = [matrix @ q for matrix, q in zip(matrices, right, strict=True)]
        self._own = [vector.copy() for vector in vectors]
        left, summed = self._sum(left, vectors, group, key)
        left = [np.linalg.qr(p)[0].astype(np.float32) for p in left]
        own = [matrix.T @ p for matrix, p in zip(matrices, left, strict=True)]
        right, _ = self._sum(own, [], group, key)
        self._right[key] = right
        self._factors, self._layout = (left, own), layout
        self._put(values, left, right, summed)

    def state(self) -> RunState:
        """The right factors, which are the same on all ranks, and how many columns they have at most."""
        factors = {
            f"{key}:{index}": factor
            for key, right in self._right.items()
            for index, factor in enumerate(right)
        }
        state = RunState(shared=to_host(factors, "factor"))
        state.set_numbers(rank=self.rank)
        return state

    def load_state(self, state: RunState) -> None:
        """Go on from what `state` returned; not from factors of another rank, which would keep that rank for ever."""
        self._right = {}
        if state.take_number("rank", self.rank) != self.rank:
            return
        for name, factor in take_all(
            state, "factor"
        ).items():  # in the order in which they were saved
            self._right.setdefault(name.rpartition(":")[0], []).append(factor)

    def take_own(self, values: NDArray[Any]) -> None:
        """The projections of this rank's own matrices, and its vectors."""
        share = np.zeros_like(values)
        self._put(share, *self._factors, self._own)
        values -= share

    def _sum(
        self, matrices: list[NDArray[Any]], vectors: list[NDArray[Any]], group: Group, key: str
    ) -> tuple[list[NDArray[Any]], list[NDArray[Any]]]:
        """All of them in one message."""
        parts = [*matrices, *vectors]
        flat = (
            np.concatenate([part.reshape(-1) for part in parts])
            if parts
            else np.zeros(0, np.float32)
        )
        all_reduce(flat, comm=group, name=key)
        self.sent += 2 * (group.size - 1) * flat.nbytes // group.size
        ends = np.cumsum([part.size for part in parts])
        back = [
            flat[end - part.size : end].reshape(part.shape)
            for end, part in zip(ends, parts, strict=True)
        ]
        return back[: len(matrices)], back[len(matrices) :]

    def _matrices(
        self, values: NDArray[Any], layout: Layout
    ) -> tuple[list[NDArray[Any]], list[NDArray[Any]]]:
        """Copies of the matrices, and the vectors."""
        if not layout:
            columns = max(1, int(np.sqrt(values.size)))
            flat = np.zeros(-(-values.size // columns) * columns, np.float32)
            flat[: values.size] = values
            return [flat.reshape(-1, columns)], []
        found = [(values[start:stop], shape) for start, stop, shape in layout]
        matrices = [part.reshape(-1, shape[-1]).copy() for part, shape in found if len(shape) > 1]
        return matrices, [part for part, shape in found if len(shape) < 2]

    def _put(
        self, values: NDArray[Any], left: Any, right: Any, vectors: list[NDArray[Any]]
    ) -> None:
        products = iter([(p @ q.T).reshape(-1) for p, q in zip(left, right, strict=True)])
        if not self._layout:
            values[...] = next(products)[: values.size]
            return
        rest = iter(vectors)
        for start, stop, shape in self._layout:
            values[start:stop] = next(products) if len(shape) > 1 else next(rest)
