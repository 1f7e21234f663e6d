"""Signals that ask a job to stop: noted by a handler, agreed by all ranks at the next step.

SLURM: `#SBATCH --signal=USR1@120` sends SIGUSR1 two minutes before the time limit; mpirun forwards it to every rank.
"""

from __future__ import annotations

import signal
from types import FrameType

SIGNALS = (signal.SIGUSR1, signal.SIGTERM)


class StopRequest:
    """`requested` becomes True when one of SIGNALS arrives. Must be made in the main thread; `release` undoes it."""

    def __init__(self) -> None:
        self.requested = False
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS}

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.requested = True

    def release(self) -> None:
        """Restore the handlers that were there before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
