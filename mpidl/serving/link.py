"""The way of messages between rank 0 and the ranks that compute: MPI, or a thread of rank 0.

The event loop of rank 0 must not wait for MPI, and MPI has nothing that it could wait for: a thread
asks for messages, and sleeps in between. It sleeps for 1 % of the time that it has waited, within
limits: what this adds to an answer is little beside the computing, and an idle server uses no core.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from mpidl.comm import mpi
from mpidl.comm.context import Context
from mpidl.serving.messages import Buffer, Head, Kind, pack, unpack
from mpidl.serving.worker import WorkerRank

if TYPE_CHECKING:
    from mpi4py import MPI as MPITypes

TAG = 77
SHORT, LONG, PART = 100e-6, 2e-3, 0.01  # seconds of sleep, and part of the time waited
Received = Callable[[int, Buffer], None]
Lost = Callable[[int], None]


class Link(Protocol):
    """Messages to ranks and back.

    Attributes:
        ranks: Those that compute.
    """

    ranks: list[int]

    @property
    def whole(self) -> bool:
        """Whether all ranks are there."""

    def start(self, received: Received, lost: Lost) -> None:
        """Begin; the functions are called in a thread of the link."""

    def send(self, rank: int, message: Buffer) -> None:
        """Send a message, which must not be changed any more; one answer comes back."""

    def forget(self, rank: int) -> None:
        """Expect nothing more from a rank that is not heard of."""

    def close(self) -> None:
        """Let the ranks end, and wait for the thread."""


def pause(since: float) -> None:
    """Sleep a little, in proportion to the time since the last message."""
    time.sleep(min(LONG, max(SHORT, PART * (time.perf_counter() - since))))


def take_message(comm: MPITypes.Comm, rank: int) -> Buffer | None:
    """The next message of a rank, if there is one."""
    MPI = mpi.load()
    status = MPI.Status()
    if not comm.Iprobe(rank, TAG, status):
        return None
    message = np.empty(status.Get_count(MPI.BYTE), np.uint8)
    comm.Recv([message, MPI.BYTE], rank, TAG)
    return message


class MpiLink:
    """To the other ranks. A message that cannot be sent or taken means that the rank is lost.

    Args:
        context: Of the job; this is rank 0.
    """

    def __init__(self, context: Context) -> None:
        self.ranks = list(range(1, context.size))
        self._comm = context.comm
        self._outbox: deque[tuple[int, Buffer]] = deque()
        self._expected = dict.fromkeys(self.ranks, 0)  # answers, by rank
        self._sending: list[tuple[int, Any, Buffer]] = []
        self._gone: set[int] = set()
        self._news = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="link", daemon=True)

    def start(self, received: Received, lost: Lost) -> None:
        """See `Link`."""
        self._received, self._lost = received, lost
        self._thread.start()

    def send(self, rank: int, message: Buffer) -> None:
        """See `Link`."""
        self._outbox.append((rank, message))
        self._news.set()

    def close(self) -> None:
        """See `Link`."""
        stop = pack(Head(Kind.STOP, 0, 0, rows=len(self._gone)))
        for rank in self.ranks:
            self._outbox.append((rank, stop))
        self._closing = True
        self._news.set()
        self._thread.join()

    @property
    def busy(self) -> bool:
        """Whether there are messages on their way."""
        return bool(self._outbox or self._sending or any(self._expected.values()))

    def _run(self) -> None:
        since = time.perf_counter()
        while self.busy or not self._closing:
            if not self.busy:
                self._news.wait()
            self._news.clear()
            if self._push() + self._pull():
                since = time.perf_counter()
            else:
                pause(since)

    def _push(self) -> int:
        """Begin to send what is in the outbox.

        Returns:
            The number of messages.
        """
        MPI = mpi.load()
        count = 0
        while self._outbox:
            rank, message = self._outbox.popleft()
            count += 1
            if rank in self._gone:
                continue
            try:
                request = self._comm.Isend([message, MPI.BYTE], rank, TAG)
            except MPI.Exception:
                self._lose(rank)
                continue
            self._sending.append((rank, request, message))
            if message[0] != Kind.STOP:
                self._expected[rank] += 1
        return count

    def _pull(self) -> int:
        """Take the answers that have come.

        Returns:
            Their number.
        """
        MPI = mpi.load()
        count = 0
        for rank, expected in list(self._expected.items()):
            try:
                while expected and (message := take_message(self._comm, rank)) is not None:
                    expected -= 1
                    self._expected[rank] = expected
                    self._received(rank, message)
                    count += 1
            except MPI.Exception:
                self._lose(rank)
        with suppress(MPI.Exception):  # asked again, after the rank is known to be lost
            self._sending = [s for s in self._sending if s[0] not in self._gone and not s[1].Test()]
        return count

    def _lose(self, rank: int) -> None:
        if rank not in self._gone:
            self._gone.add(rank)
            self._expected.pop(rank, None)
            self._lost(rank)

    def forget(self, rank: int) -> None:
        """Expect nothing more from a rank that is not heard of."""
        self._gone.add(rank)
        self._expected.pop(rank, None)

    @property
    def whole(self) -> bool:
        """Whether all ranks are there."""
        return not self._gone


class ThreadLink:
    """To a thread of this process, where there is one rank.

    Args:
        context: Of the job.
    """

    def __init__(self, context: Context) -> None:
        self.ranks = [0]
        self._hangs = False
        self._worker = WorkerRank(context)
        self._inbox: queue.SimpleQueue[Buffer] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="worker", daemon=True)

    def start(self, received: Received, lost: Lost) -> None:
        """See `Link`."""
        self._received = received
        self._thread.start()

    def send(self, rank: int, message: Buffer) -> None:
        """See `Link`."""
        self._inbox.put(message)

    def forget(self, rank: int) -> None:
        """Nothing comes from a thread that hangs."""
        self._hangs = True

    def close(self) -> None:
        """See `Link`."""
        self._inbox.put(pack(Head(Kind.STOP, 0, 0)))
        if self.whole:
            self._thread.join()

    @property
    def whole(self) -> bool:
        """See `Link`."""
        return not self._hangs

    def _run(self) -> None:
        while (answer := self._worker.answer(self._inbox.get())) is not None:
            self._received(0, answer)


def work(context: Context) -> bool:
    """Answer the messages of rank 0 until it says to stop; on the other ranks.

    Returns:
        Whether all ranks are still there, as rank 0 says.
    """
    MPI = mpi.load()
    worker = WorkerRank(context)
    since = time.perf_counter()
    while True:
        message = take_message(context.comm, 0)
        if message is None:
            pause(since)
            continue
        answer = worker.answer(message)
        if answer is None:
            return unpack(message)[0].rows == 0
        context.comm.Send([answer, MPI.BYTE], 0, TAG)
        since = time.perf_counter()
