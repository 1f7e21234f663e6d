"""Keeps MPI going on a rank that computes, so that others can reach its memory over a network."""

from __future__ import annotations

import threading
from typing import Any

from mpidl.comm import mpi

PAUSE = 0.001  # seconds


class Progress:
    """A thread that looks for messages now and then; MPI then also serves one-sided operations of other ranks."""

    def __init__(self, comm: Any) -> None:
        self._comm, self._stop = comm, threading.Event()
        self._thread = threading.Thread(target=self._work, name="mpidl-progress", daemon=True)
        self._thread.start()
        mpi.before_finalise(self.close)

    def _work(self) -> None:
        while not self._stop.wait(PAUSE):
            self._comm.Iprobe()

    def close(self) -> None:
        """End the thread."""
        self._stop.set()
        self._thread.join()
