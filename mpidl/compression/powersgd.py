"""PowerSGD: each weight matrix is approximated by two thin factors that are all-reduced."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpidl.backend import ops_for
from mpidl.collectives import Group, all_reduce
from mpidl.collectives.schedule import all_reduce_bytes
from mpidl.compression.compressor import Compressor, Layout
from mpidl.compression.error_feedback import Residuals, drop_nonfinite, take_arrays
from mpidl.optim import RunState
from mpidl.options import Positive

Arrays = Sequence[NDArray[Any]]


class PowerSGD(Compressor):
    """One step of power iteration from the factor of the step before (Vogels et al., 2019).

    A tensor becomes a matrix with its last axis as columns; without a layout the whole bucket
    becomes one that is nearly square. Vectors (biases) travel as they are. Needs error feedback.
    """

    on_device = False

    class Options(Compressor.Options, frozen=True):
        """Options of powersgd.

        Attributes:
            rank: Columns of the two factors.
            error_feedback: Add what compression leaves out of a step to the next one.
        """

        rank: Positive = 4

    options: Options

    def __init__(self, options: Options | None = None, *, seed: int = 0) -> None:
        super().__init__(options, seed=seed)
        self.residuals = Residuals("residual")
        self._right: dict[str, Arrays] = {}  # factors (columns, rank) by bucket

    def reduce(self, values: NDArray[Any], group: Group, key: str, layout: Layout = ()) -> None:
        """All-reduce of (rows + columns) x rank elements instead of rows x columns."""
        residual = None
        if self.options.error_feedback:
            residual = self.residuals.of(key, values.shape, values)
            ops_for(values).add_and_keep(values, residual)
        finite = bool(np.isfinite(values).all())
        matrices, vectors = _split(values, layout)
        own_vectors = [vector.copy() for vector in vectors]
        factors = self._factors(key, matrices)
        left: Arrays = [m @ factor for m, factor in zip(matrices, factors, strict=True)]
        left, summed = self._sum(left, vectors, group, key)
        left = [np.linalg.qr(factor)[0].astype(np.float32) for factor in left]
        own_right = [matrix.T @ factor for matrix, factor in zip(matrices, left, strict=True)]
        right, _ = self._sum(own_right, [], group, key)
        self._right[key] = right
        _join(values, layout, left, right, summed)
        if residual is not None:
            # the others got the projections of this rank's matrices, and its vectors
            sent = np.zeros_like(residual)
            _join(sent, layout, left, own_right, own_vectors)
            residual -= sent
            if not finite:
                drop_nonfinite(residual)

    def _factors(self, key: str, matrices: Arrays) -> Arrays:
        """The right factors of the step before; random ones, equal on all ranks, in the first."""
        held = self._right.get(key)
        if held is not None:
            return held
        generator = np.random.default_rng(self.seed)
        shapes = [(m.shape[1], min(self.options.rank, *m.shape)) for m in matrices]
        return [generator.standard_normal(shape).astype(np.float32) for shape in shapes]

    def _sum(
        self, matrices: Arrays, vectors: Arrays, group: Group, key: str
    ) -> tuple[Arrays, Arrays]:
        """Sum all of them over the ranks in one message."""
        parts = [*matrices, *vectors]
        rows = [part.reshape(-1) for part in parts]
        flat = np.concatenate(rows) if rows else np.zeros(0, np.float32)
        all_reduce(flat, comm=group, name=key)
        self.sent += all_reduce_bytes(flat.nbytes, group.size)
        ends = np.cumsum([part.size for part in parts])
        back = [
            flat[end - part.size : end].reshape(part.shape)
            for end, part in zip(ends, parts, strict=True)
        ]
        return back[: len(matrices)], back[len(matrices) :]

    def state(self) -> RunState:
        """Residuals; the right factors, equal on all ranks, and their largest rank."""
        state = RunState()
        self.residuals.save(state)
        state.shared = {
            f"factor:{key}:{index}": factor.copy()
            for key, right in self._right.items()
            for index, factor in enumerate(right)
        }
        state.set_numbers(rank=self.options.rank)
        return state

    def load_state(self, state: RunState) -> None:
        """Go on from what `state` returned.

        Not from factors of another rank, which would keep that rank for ever.
        """
        if self.options.error_feedback:
            self.residuals.load(state)
        self._right = {}
        if state.take_number("rank", self.options.rank) != self.options.rank:
            return
        found: dict[str, list[NDArray[Any]]] = {}
        for name, factor in take_arrays(state, "factor").items():  # in the order of their indices
            found.setdefault(name.rpartition(":")[0], []).append(factor)
        self._right.update(found)


def _split(values: NDArray[Any], layout: Layout) -> tuple[Arrays, Arrays]:
    """Views of the matrices of a bucket and of its vectors; without a layout a padded copy."""
    if not layout:
        columns = max(1, int(np.sqrt(values.size)))
        flat = np.zeros(-(-values.size // columns) * columns, np.float32)
        flat[: values.size] = values
        return [flat.reshape(-1, columns)], []
    found = [(values[start:stop], shape) for start, stop, shape in layout]
    matrices = [part.reshape(-1, shape[-1]) for part, shape in found if len(shape) > 1]
    return matrices, [part for part, shape in found if len(shape) < 2]


def _join(
    values: NDArray[Any], layout: Layout, left: Arrays, right: Arrays, vectors: Arrays
) -> None:
    """Fill a bucket with the products of factors, and with vectors: the inverse of `_split`."""
    if not layout:
        values[...] = (left[0] @ right[0].T).reshape(-1)[: values.size]
        return
    factors, rest = iter(zip(left, right, strict=True)), iter(vectors)
    for start, stop, shape in layout:
        part = values[start:stop]
        if len(shape) > 1:
            p, q = next(factors)
            # no temporary: fresh pages for it took longer than the product
            np.matmul(p, q.T, out=part.reshape(-1, shape[-1]))
        else:
            part[...] = next(rest)
