"""The communication thread: runs exchanges in submission order while backward continues."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

from mpidl.comm import mpi


class CommunicationThread:
    """Runs jobs one after another in a thread of its own.

    `drain` raises the first error; the jobs after it are skipped.
    """

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._done = threading.Semaphore(0)
        self._pending = 0
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="mpidl-exchange", daemon=True)
        self._thread.start()
        mpi.before_finalize(self.close)

    def submit(self, job: Callable[[], None]) -> None:
        """Enqueue a job; returns immediately."""
        self._pending += 1
        self._jobs.put(job)

    def drain(self) -> None:
        """Wait until all submitted jobs are done; raise the first error among them."""
        for _ in range(self._pending):
            self._done.acquire()
        self._pending = 0
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def close(self) -> None:
        """End the thread after the jobs that are queued."""
        if self._thread.is_alive():
            self._jobs.put(None)
            self._thread.join(timeout=5)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                if self._error is None:
                    job()
            except BaseException as error:
                self._error = error
            finally:
                self._done.release()
