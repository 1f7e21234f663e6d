"""Ends a job whose ranks wait for each other for too long, and names the ranks that are missing.

One thread per process looks at the collectives in progress. When one lasts longer than the limit,
it asks the watchdogs of all other ranks what they are doing. A rank that computes answers with its
stack; a stopped or dead one does not answer.
"""

from __future__ import annotations

import faulthandler
import math
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mpidl.comm import mpi, objects
from mpidl.comm.activity import Activity, activities
from mpidl.errors import ConfigError, notice
from mpidl.settings import WATCHDOG

if TYPE_CHECKING:
    from mpi4py import MPI as MPITypes

DEFAULT_LIMIT = 300.0  # seconds
ABORT_LIMIT = 10.0  # seconds that MPI has to end the job
LONGEST = 1e6  # seconds; more than faulthandler takes is no limit anyway
ASK, ANSWER = 11, 12
Key = tuple[str, tuple[int, ...], int]  # of an activity
_watchdog: Watchdog | None = None  # one thread watches all groups of a process


class State(NamedTuple):
    """What a rank does in a group.

    Attributes:
        begun: Collectives it has begun.
        call: The one in progress, in words.
        stack: The top of its stack.
    """

    begun: int
    call: str
    stack: str


def start(comm: MPITypes.Intracomm, limit: float | None = None) -> None:
    """Start watching, once per process. Collective.

    Args:
        comm: All ranks; it is cloned.
        limit: Seconds, by default MPIDL_WATCHDOG or 300; 0 turns it off.
    """
    global _watchdog
    if limit is None:
        limit = _limit(WATCHDOG.value or DEFAULT_LIMIT, WATCHDOG.name)
    limit = _limit(limit, "watchdog_seconds")
    if _watchdog is None and limit > 0 and comm.Get_size() > 1:
        with _ends_process(limit):
            _watchdog = Watchdog(comm.Clone(), limit)
        mpi.before_finalize(_watchdog.stop)
        _watchdog.start()


@contextmanager
def bounded() -> Iterator[None]:
    """End the job if the block lasts longer than twice the limit.

    For MPI calls that hold Python's lock, so that the watchdog's thread cannot look.
    """
    if _watchdog is None:
        yield
        return
    with _ends_process(2 * _watchdog.limit):
        yield


@contextmanager
def _ends_process(limit: float) -> Iterator[None]:
    faulthandler.dump_traceback_later(min(limit, LONGEST), exit=True, file=2)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def _limit(given: Any, where: str) -> float:
    try:
        limit = float(given)
    except (TypeError, ValueError):
        limit = math.nan
    if not 0 <= limit <= threading.TIMEOUT_MAX:
        raise ConfigError(
            f"{given!r} is no time limit",
            where=where,
            remedy="give seconds, or 0 to turn the watchdog off",
        )
    return limit


class Watchdog(threading.Thread):
    """Looks every tenth of the limit, and at least every second."""

    def __init__(self, comm: MPITypes.Intracomm, limit: float) -> None:
        super().__init__(name="mpidl-watchdog", daemon=True)
        self.comm = comm
        self.limit = limit
        self.tick = min(1.0, limit / 10)
        self.rank = comm.Get_rank()
        self.main = threading.main_thread().ident
        self._over = threading.Event()
        self._since: dict[Any, tuple[int, float]] = {}
        self._sends: list[Any] = []
        MPI = mpi.load()
        self.may_talk = MPI.Query_thread() >= MPI.THREAD_MULTIPLE

    def run(self) -> None:
        """Look, answer and report until `stop`; an error in doing so ends the job."""
        try:
            self._look()
        except Exception:
            traceback.print_exc()
            self._end()

    def _look(self) -> None:
        while not self._over.wait(self.tick):
            if self.may_talk:
                self._answer()
            for group in activities():
                if self._stalled(group):
                    self._report(group)

    def stop(self) -> None:
        """End the thread; nothing is watched any more."""
        self._over.set()
        self.join()

    def _stalled(self, group: Activity) -> bool:
        count, call, now = group.count, group.call, time.monotonic()
        before = self._since.get(group.key)
        if call is None or before is None or before[0] != count:
            self._since[group.key] = (count, now)
            return False
        return now - before[1] > self.limit

    def _state(self, key: Any) -> State:
        frame = sys._current_frames().get(self.main or 0)
        stack = " < ".join(
            f"{entry.name} ({entry.filename}:{entry.lineno})"
            for entry in traceback.extract_stack(frame)[:-4:-1]
        )
        group = next((group for group in activities() if group.key == key), None)
        return State(group.count, str(group.call or ""), stack) if group else State(-1, "", stack)

    def _send(self, value: Any, rank: int, tag: int) -> None:
        message = np.frombuffer(objects.pack(value), np.uint8)
        self._sends.append((self.comm.Isend(message, rank, tag), message))

    def _take(self, tag: int, kind: Any, status: Any) -> Any:
        """A message that has come; `status` of the probe that has found it."""
        message = np.empty(status.Get_count(mpi.load().BYTE), np.uint8)
        self.comm.Recv(message, status.Get_source(), tag)
        return objects.unpack(message, kind)

    def _answer(self) -> None:
        MPI = mpi.load()
        status = MPI.Status()
        while self.comm.Iprobe(MPI.ANY_SOURCE, ASK, status):
            key = self._take(ASK, Key, status)
            self._send(self._state(key), status.Get_source(), ANSWER)

    def _ask(self, group: Activity) -> dict[int, State]:
        """The states of the ranks that answer in time, by their number in the group."""
        MPI = mpi.load()
        answers: dict[int, State] = {}
        others = {world: rank for rank, world in enumerate(group.world) if world != self.rank}
        for world in others:
            self._send(group.key, world, ASK)
        deadline = time.monotonic() + max(2.0, 3 * self.tick)
        while time.monotonic() < deadline and len(answers) < len(others):
            self._answer()
            status = MPI.Status()
            if self.comm.Iprobe(MPI.ANY_SOURCE, ANSWER, status):
                state = self._take(ANSWER, State, status)
                answers[others[status.Get_source()]] = state
            else:
                time.sleep(0.01)
        return answers

    def _report(self, group: Activity) -> None:
        count, call = group.count, str(group.call or "")
        answers = self._ask(group) if self.may_talk else {}
        if group.call is None or group.count != count:
            return  # it went on after all
        answers[group.rank] = State(count, call, "")
        lines = []
        for rank in range(group.size):
            state = answers.get(rank)
            if state is None:
                lines.append(
                    f"rank {rank} does not answer: it is stopped, dead, or computes without "
                    "letting Python run"
                )
            elif state.begun < count or not state.call:
                lines.append(f"rank {rank} has not arrived; it is in {state.stack}")
            elif state.call != call:
                lines.append(f"rank {rank} is in another collective: {state.call}")
        waiting = min(
            rank for rank, state in answers.items() if state.call and state.begun >= count
        )
        if waiting == group.rank:
            lines = lines or ["all ranks are in this collective: messages are lost or very slow"]
            head = f"{call} has waited for over {self.limit:g} s in group {group.name!r}"
            remedy = (
                "what to do: look at those ranks; for slow work set a longer limit "
                "(MPIDL_WATCHDOG, in seconds)"
            )
            notice("\n  ".join([head, *lines, remedy]), f"error on rank {self.rank}")
        else:
            time.sleep(1.0)  # the rank that reports speaks first
        self._end()

    def _end(self) -> None:
        with _ends_process(ABORT_LIMIT):
            self.comm.Abort(1)
