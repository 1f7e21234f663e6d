"""The strategy: gradients are exchanged by columns, screened, and combined robustly."""

from __future__ import annotations

import math
from typing import Annotated, Any

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from mpidl.backend import Array
from mpidl.collectives import all_gather, all_reduce, all_to_all
from mpidl.comm.context import Context
from mpidl.errors import ConfigError, notice
from mpidl.nn import FlatParameters
from mpidl.optim import RunState
from mpidl.options import OneOf, Section
from mpidl.sync.strategy import RunInfo, StepScalars
from mpidl.sync.synchronous.robust.aggregators import AGGREGATORS, Gradients, squared_norms
from mpidl.sync.synchronous.robust.screening import Flags, Screening
from mpidl.sync.synchronous.strategy import SynchronousStrategy, Update

AUTO = -1


class Robust(SynchronousStrategy):
    """Gradients of ranks that are outliers do not steer the model.

    Each rank gets some columns of the gradients of all ranks (an all-to-all), combines them, and
    shares the result (an all-gather): as many bytes as a ring all-reduce. In each step ranks are
    left out whose gradient is not finite, or has an unusual norm or direction.

    Attributes:
        screening: Who has been an outlier.
    """

    class Options(Section, frozen=True):
        """Options of robust.

        Attributes:
            aggregate: How gradients are combined: "mean" (of the ranks that are not outliers),
                "median", "trimmed_mean", "krum" or "geometric_median".
            tolerate: Ranks whose gradients may be arbitrary; -1: as many as the aggregate allows.
            screen: Robust standard deviations of norm and direction beyond which a rank is left
                out of a step; 0: only where its gradient is not finite.
            quarantine: Steps in a row as an outlier after which a rank is left out for good; 0:
                never.
        """

        aggregate: Annotated[str, OneOf(AGGREGATORS)] = "median"
        tolerate: Annotated[int, Meta(ge=AUTO, le=1 << 20)] = AUTO
        screen: Annotated[float, Meta(ge=0, le=1e6)] = 6.0
        quarantine: Annotated[int, Meta(ge=0, le=1 << 40)] = 20

    options: Options

    @classmethod
    def check(cls, options: Any, run: RunInfo) -> None:
        """Also refuse to tolerate more ranks than the aggregate can."""
        super().check(options, run)
        most = AGGREGATORS[options.aggregate].most_bad(run.ranks)
        if run.ranks and options.tolerate > most:
            raise ConfigError(
                f"{options.aggregate} of {run.ranks} rank(s) tolerates {most} bad one(s), not "
                f"{options.tolerate}",
                where="sync.tolerate",
                remedy="use more ranks, tolerate fewer, or another aggregate",
            )

    def __init__(
        self,
        parameters: FlatParameters,
        context: Context,
        options: Section | None = None,
        run: RunInfo | None = None,
    ) -> None:
        super().__init__(parameters, context, options, run)
        chosen, size = self.options, self.group.size
        self.screening = Screening(size, chosen.screen, chosen.quarantine)
        self._aggregator = AGGREGATORS[chosen.aggregate]
        self._columns = -(-parameters.length // size)
        make = parameters.ops.xp.zeros
        self._own: Array = make(self._columns * size, parameters.dtype)
        self._all: Array = make(self._columns * size, parameters.dtype)

    # --- a step ---
    def step(self, scalars: StepScalars, update: Update) -> StepScalars:
        rows = self._gather(scalars)
        sums = StepScalars(*rows.sum(axis=0).tolist())
        if sums.failed or self.group.size == 1:
            if not sums.failed and math.isfinite(sums.loss):
                update()
            return sums
        counts = np.array([StepScalars(*row).count for row in rows])
        used = self._combine(counts)
        if used.any():  # what is said of the step is said of those that count
            known = StepScalars(*rows[used].sum(axis=0).tolist())
            sums.loss, sums.correct, sums.count = known.loss, known.correct, known.count
        if math.isfinite(sums.loss):
            update()
        return sums

    def _gather(self, scalars: StepScalars) -> NDArray[np.float64]:
        """(ranks, scalars) of all ranks."""
        own = scalars.row(np.float64)
        found = np.zeros((self.group.size, own.size))
        found[self.group.rank] = own
        all_gather(found.reshape(-1), comm=self.group, name="scalars")
        return found

    def _total(self, small: NDArray[np.float64]) -> NDArray[np.float64]:
        found = np.ascontiguousarray(small, np.float64).reshape(-1).copy()
        all_reduce(found, comm=self.group, name="screening")
        return found.reshape(small.shape)

    def _combine(self, counts: NDArray[np.float64]) -> Flags:
        """Replace the gradients by their aggregate.

        Args:
            counts: (ranks,), samples of each.

        Returns:
            (ranks,), which were used.
        """
        gradients, length = self.parameters.gradients, self.parameters.length
        present = counts > 0
        own = counts[self.group.rank]
        # a sum over this rank's samples divided by those of all ranks becomes their mean
        scale = counts.sum() / own if own else 0.0
        self._own[:length] = gradients[:length] * self._own.dtype.type(scale)
        self._own[length:] = 0
        all_to_all(self._own, self._all, comm=self.group, name="gradients")
        rows = self._all.reshape(self.group.size, self._columns)
        squares = self._total(squared_norms(rows))
        candidates = present & ~self.screening.quarantined
        used = self.screening.usual_norms(squares, candidates)
        if not used.any():  # nobody's is finite: the loss, or its scale, is to blame
            used = candidates
        found = self._aggregate(rows, counts, used)
        agree = self.screening.usual_directions(self._cosines(rows, found, squares), used)
        if not agree.all() and agree.any() and (agree != used).any():
            used = agree
            found = self._aggregate(rows, counts, used)
        self._share(found)
        self._note(present, used)
        return used

    def _aggregate(self, rows: Array, counts: NDArray[np.float64], used: Flags) -> Array:
        """This rank's columns of the aggregate of some ranks."""
        indices = np.flatnonzero(used)
        most = self._aggregator.most_bad(len(indices))
        wanted = self.options.tolerate
        bad = most if wanted == AUTO else min(wanted, most)
        chosen = rows if len(indices) == len(rows) else rows[indices]
        return self._aggregator.combine(Gradients(chosen, counts[indices], bad, self._total))

    def _cosines(self, rows: Any, found: Any, squares: NDArray[np.float64]) -> NDArray[np.float64]:
        """(ranks,), of the angle between each rank's gradient and the aggregate."""
        sums = self._total(np.array([float(row @ found) for row in (*rows, found)]))
        with np.errstate(divide="ignore", invalid="ignore"):
            cosines: NDArray[np.float64] = sums[:-1] / np.sqrt(squares * sums[-1])
        return np.nan_to_num(cosines, nan=0.0, posinf=0.0, neginf=0.0)

    def _share(self, found: Array) -> None:
        """Give all ranks all columns of the aggregate."""
        low = self.group.rank * self._columns
        self._own[low : low + self._columns] = found
        all_gather(self._own, comm=self.group, name="gradients")
        length = self.parameters.length
        self.parameters.gradients[:length] = self._own[:length]
        self.sent += 2 * (self.group.size - 1) * self._columns * self._own.itemsize

    def _note(self, present: Flags, used: Flags) -> None:
        for rank in self.screening.note(present & ~self.screening.quarantined, used):
            if self.context.is_root:
                steps = self.options.quarantine
                notice(
                    f"rank {rank} is in quarantine: its gradients have been outliers in {steps} "
                    "steps in a row, and do not count any more; look at its data and its node",
                    "warning",
                )

    # --- checkpoints ---
    def state(self) -> RunState:
        """Also who has been an outlier."""
        state = super().state()
        state.add("screening", self.screening.state())
        return state

    def load_state(self, state: RunState) -> None:
        super().load_state(state)
        self.screening.load_state(state.take_section("screening"))

    def report(self) -> dict[str, Any]:
        """Also the steps in which ranks were left out, and who is in quarantine."""
        found = super().report()
        excluded, quarantined = self.screening.excluded, self.screening.quarantined
        if excluded.any():
            found["excluded_steps"] = {int(r): int(excluded[r]) for r in np.flatnonzero(excluded)}
        if quarantined.any():
            found["quarantined_ranks"] = [int(rank) for rank in np.flatnonzero(quarantined)]
        return found
