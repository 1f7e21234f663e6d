"""Which ranks are outliers: by the norm of their gradients, by their direction, for how long."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mpidl.optim import RunState

Flags = NDArray[np.bool_]
Values = NDArray[np.float64]
NORM_SPREAD, DIRECTION_SPREAD = 0.15, 0.05  # the least that is taken for usual


def robust_scores(values: Values, least: float) -> Values:
    """Distances from the median in robust standard deviations (Iglewicz and Hoaglin, 1993).

    Args:
        values: (k,).
        least: The smallest standard deviation.
    """
    center = np.median(values)
    spread = 1.4826 * np.median(np.abs(values - center))
    scores: Values = (values - center) / max(float(spread), least)
    return scores


class Screening:
    """Remembers which ranks have been outliers; the same on all ranks.

    Args:
        ranks: How many there are.
        limit: Robust standard deviations that are usual; 0: nothing but NaN and infinity counts.
        patience: Steps in a row after which a rank is put in quarantine; 0: never.

    Attributes:
        in_a_row: (ranks,), steps in which each has been an outlier without a break.
        excluded: (ranks,), steps in which each has been left out.
        quarantined: (ranks,), whether it is left out for good.
    """

    def __init__(self, ranks: int, limit: float, patience: int) -> None:
        self.limit = limit
        self.patience = patience
        self.in_a_row = np.zeros(ranks, np.int64)
        self.excluded = np.zeros(ranks, np.int64)
        self.quarantined = np.zeros(ranks, np.bool_)

    def usual_norms(self, squares: Values, present: Flags) -> Flags:
        """Ranks whose gradient is finite and has the norm of an honest one.

        Args:
            squares: (ranks,), squared norms.
            present: (ranks,), those that have samples.
        """
        finite = present & np.isfinite(squares)
        if not self.limit or finite.sum() < 3:
            return finite
        logs = 0.5 * np.log(squares[finite] + 1e-300)
        usual = finite.copy()
        usual[finite] = np.abs(robust_scores(logs, NORM_SPREAD)) <= self.limit
        return usual

    def usual_directions(self, cosines: Values, present: Flags) -> Flags:
        """Ranks whose gradient does not point against the others.

        Args:
            cosines: (ranks,), of the angle to the aggregate.
            present: (ranks,), those that it was made of.
        """
        if not self.limit or present.sum() < 3:
            return present
        scores = robust_scores(cosines[present], DIRECTION_SPREAD)
        usual = present.copy()
        usual[present] = (scores >= -self.limit) | (cosines[present] >= 0)
        return usual

    def note(self, present: Flags, used: Flags) -> list[int]:
        """Remember a step.

        Args:
            present: (ranks,), those that have samples.
            used: (ranks,), those whose gradients were used.

        Returns:
            Ranks that are in quarantine from now on. They stay fewer than half.
        """
        out = present & ~used
        self.excluded += out
        self.in_a_row[out] += 1
        self.in_a_row[present & used] = 0
        if not self.patience:
            return []
        late = np.flatnonzero((self.in_a_row >= self.patience) & ~self.quarantined)
        room = (len(out) - 1) // 2 - int(self.quarantined.sum())
        new = [int(rank) for rank in late[: max(0, room)]]
        self.quarantined[new] = True
        return new

    def state(self) -> RunState:
        """What a resumed run goes on from."""
        state = RunState()
        state.shared |= {
            "in_a_row": self.in_a_row.copy(),
            "excluded": self.excluded.copy(),
            "quarantined": self.quarantined.astype(np.int64),
        }
        return state

    def load_state(self, state: RunState) -> None:
        """Go on from what `state` returned; with another number of ranks nothing is known."""
        found = [state.shared.pop(n, None) for n in ("in_a_row", "excluded", "quarantined")]
        if all(array is not None and len(array) == len(self.in_a_row) for array in found):
            in_a_row, excluded, quarantined = (np.asarray(array) for array in found)
            self.in_a_row[:], self.excluded[:] = in_a_row, excluded
            self.quarantined[:] = quarantined != 0
