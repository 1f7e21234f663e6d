"""Signals that ask a job to stop: noted by a handler, agreed by all ranks at the next step.

SLURM: `#SBATCH --signal=USR1@120` sends SIGUSR1 two minutes before the time limit; mpirun forwards
it to every rank.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from mpidl.train.events import Observer, RunStart

SIGNALS = (signal.SIGUSR1, signal.SIGTERM)


class StopRequest(Observer):
    """Asks for a stop when one of SIGNALS arrives. For the main thread only, as all handlers."""

    def __init__(self) -> None:
        self._requested = False
        self._before: dict[signal.Signals, Any] = {}

    @property
    def stop_requested(self) -> bool:
        """Whether a signal has arrived."""
        return self._requested

    def run_started(self, start: RunStart) -> None:
        """Install the handlers."""
        self._install()

    @classmethod
    @contextmanager
    def installed(cls, *more: signal.Signals) -> Iterator[StopRequest]:
        """For the time of a block, outside of a training run; `more`: other signals too."""
        made = cls()
        made._install(*more)
        try:
            yield made
        finally:
            made.close()

    def _install(self, *more: signal.Signals) -> None:
        self._before = {number: signal.signal(number, self._note) for number in (*SIGNALS, *more)}

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._requested = True

    def close(self) -> None:
        """Restore the handlers that were there before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
