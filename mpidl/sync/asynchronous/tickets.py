"""Counters that all ranks reach: who takes which step, and how many updates there were."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mpidl.collectives.window import Window

if TYPE_CHECKING:
    from mpi4py import MPI

TICKETS, UPDATES, OWN = 0, 1, 2


class Tickets:
    """Hands out the steps of an epoch one by one, and counts updates, by one-sided communication.

    Args:
        comm: The ranks.
        home: The rank in whose memory the counters are.
        everywhere: Every rank has a counter of updates of its own.
        workers: Also a counter for each of so many ranks, that only this one raises: its clock.

    Attributes:
        budget: Steps of the epoch.
    """

    def __init__(
        self, comm: MPI.Intracomm, home: int = 0, *, everywhere: bool = False, workers: int = 0
    ) -> None:
        self.comm = comm
        self.home = home
        self.rank = comm.Get_rank()
        self.budget = 0
        holds = everywhere or self.rank == home
        self._counters = Window(comm, OWN + workers if holds else 0, np.int64)
        self._workers = workers
        self._clocks = np.zeros(workers, np.int64)

    def open(self, budget: int) -> None:
        """Begin an epoch: no step is taken, and all clocks are 0. Collective."""
        self.budget = budget
        self.comm.Barrier()
        if self.rank == self.home:
            for place in (TICKETS, *range(OWN, OWN + self._workers)):
                self._counters.reset(self.home, place)
        self.comm.Barrier()

    def take(self) -> int:
        """The number of the next step; the budget or more where all are taken."""
        return self._counters.fetch_and_add(self.home, TICKETS)

    def updates(self, rank: int | None = None) -> int:
        """Updates so far, as counted at the home, or at `rank`."""
        return self._counters.fetch(self.home if rank is None else rank, UPDATES)

    def count_update(self, rank: int | None = None) -> int:
        """One more update, at the home or at `rank`; returns how many there were before."""
        return self._counters.fetch_and_add(self.home if rank is None else rank, UPDATES)

    def advance(self, by: int = 1) -> None:
        """Raise this rank's clock."""
        self._counters.fetch_and_add(self.home, OWN + self.rank, by)

    def slowest(self) -> int:
        """The lowest of all clocks."""
        self._counters.get(self.home, self._clocks, OWN)
        return int(self._clocks.min())
