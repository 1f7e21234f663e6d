"""What a rank needs to talk to all other ranks of its job: keys, memory, and how the job ends."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

import numpy as np
from numpy.typing import NDArray

from mpidl.comm import mpi
from mpidl.errors import MpidlError, SecurityError, notice
from mpidl.security.handshake import Secrets
from mpidl.security.records import Limits, Receiver, Sender

T = TypeVar("T")
UNDER_WAY = 16  # small messages whose sending was not waited for
POOLED = 128 << 20  # bytes of memory that is kept for the next messages


class Pool:
    """Memory for sealed messages: new memory is slow, since the system clears it first."""

    def __init__(self) -> None:
        self._free: dict[int, list[NDArray[np.uint8]]] = {}
        self._held = 0
        self._lock = threading.Lock()

    def take(self, length: int) -> NDArray[np.uint8]:
        """`length` bytes, with any content."""
        size = max(64, 1 << (length - 1).bit_length())
        with self._lock:
            free = self._free.get(size)
            if free:
                self._held -= size
                return free.pop()[:length]
        return np.empty(size, np.uint8)[:length]

    def give(self, memory: NDArray[np.uint8]) -> None:
        """Give memory back that nobody uses any more."""
        whole = memory if memory.base is None else memory.base
        if not isinstance(whole, np.ndarray):
            return
        with self._lock:
            if self._held + whole.size <= POOLED:
                self._held += whole.size
                self._free.setdefault(whole.size, []).append(whole)


class Outbox:
    """Small messages that were sent, and whose memory MPI may still read.

    Args:
        pool: Where the memory goes back to.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._sent: deque[tuple[Any, NDArray[np.uint8]]] = deque()
        self._lock = threading.Lock()

    def add(self, request: Any, memory: NDArray[np.uint8]) -> None:
        """Keep the memory of a message until it has left."""
        with self._lock:
            self._sent.append((request, memory))
            full = len(self._sent) > UNDER_WAY
            oldest, used = self._sent.popleft() if full else (request, memory)
        if full:
            oldest.Wait()
            self._pool.give(used)

    def flush(self) -> None:
        """Give the messages that are left a second to leave."""
        end = time.monotonic() + 1.0
        with self._lock:
            while self._sent and time.monotonic() < end:
                if self._sent[0][0].Test():
                    self._sent.popleft()


class Session:
    """The keys of one rank.

    Args:
        secrets: From the handshake.
        rank: This rank in the job.
        scope: "nodes": messages within a node are not sealed; "all".
        limits: When keys are replaced.
        abort: Ends the job on all ranks; does not return.

    Attributes:
        rank: See above.
        scope: See above.
        pool: Memory for sealed messages.
        outbox: Small messages that may not have left yet.
    """

    def __init__(
        self,
        secrets: Secrets,
        rank: int,
        scope: str,
        limits: Limits,
        abort: Callable[[int], NoReturn] | None = None,
    ) -> None:
        self.rank = rank
        self.scope = scope
        self.pool = Pool()
        self.outbox = Outbox(self.pool)
        self._secrets = secrets
        self._limits = limits
        self._abort = abort or _abort
        self._ends: dict[int, tuple[Sender, Receiver]] = {}
        self._lock = threading.Lock()

    @property
    def suite(self) -> str:
        """The cipher."""
        return self._secrets.suite

    def protects(self, member: int) -> bool:
        """Whether messages to a rank of the job are sealed; those to oneself do not travel."""
        nodes = self._secrets.nodes
        near = self.scope == "nodes" and nodes[member] == nodes[self.rank]
        return member != self.rank and not near

    def sender(self, member: int) -> Sender:
        """Seals for a rank of the job."""
        return (self._ends.get(member) or self._begin(member))[0]

    def receiver(self, member: int) -> Receiver:
        """Opens what comes from a rank of the job."""
        return (self._ends.get(member) or self._begin(member))[1]

    def _begin(self, member: int) -> tuple[Sender, Receiver]:
        with self._lock:
            if member not in self._ends:
                to, back = self._secrets.pair(member)
                self._ends[member] = (
                    Sender(self.suite, to, self._limits),
                    Receiver(self.suite, back, member),
                )
            return self._ends[member]

    def guarded(self, function: Callable[..., T], *args: Any) -> T:
        """Call a function; a record that is not genuine ends the job."""
        try:
            return function(*args)
        except SecurityError as error:
            self.fail(error)

    def fail(self, error: MpidlError) -> NoReturn:
        """End the job on all ranks: the others wait for this one, and cannot know why."""
        notice(str(error), f"error on rank {self.rank}")
        sys.stdout.flush()
        self._abort(1)


def _abort(status: int) -> NoReturn:
    mpi.load().COMM_WORLD.Abort(status)
    os._exit(status)
