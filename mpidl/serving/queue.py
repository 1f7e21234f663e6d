"""The requests that wait for one model: by priority, with deadlines and a limit.

Plain objects: the time is a number of nanoseconds that the caller gives.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from mpidl.serving.errors import ServingError, Unavailable
from mpidl.serving.settings import ModelSettings


@dataclass(eq=False)
class Pending:
    """A request that waits or is computed.

    Attributes:
        inputs: One array (rows, ...) for each input of the model.
        rows: Samples.
        finish: Called once, with the outputs or an error.
        priority: 1 is the most urgent; 0: as the model's settings say.
        timeout: Nanoseconds from its arrival; 0: as the model's settings say.
        queued: When it arrived, in nanoseconds.
        started: When its batch was sent.
        waiting: Whether it is in the queue.
        lost: How many ranks were lost while they computed it.
    """

    inputs: Sequence[NDArray[Any]]
    rows: int
    finish: Callable[[Any], None]
    priority: int = 0
    timeout: int = 0
    queued: int = 0
    started: int = 0
    waiting: bool = False
    lost: int = 0


class RequestQueue:
    """The waiting requests of a model.

    Args:
        settings: Its settings.

    Attributes:
        rows: Samples that wait.
    """

    def __init__(self, settings: ModelSettings) -> None:
        self.settings = settings
        self.rows = 0
        self._count = 0
        levels = max(1, settings.priority_levels)
        self._levels: list[deque[Pending]] = [deque() for _ in range(levels)]
        self._late: deque[Pending] = deque()
        self._deadlines: list[tuple[int, int, Pending]] = []
        self._order = itertools.count()

    def __len__(self) -> int:
        return self._count

    def push(self, request: Pending, now: int) -> None:
        """Add a request.

        Raises:
            Unavailable: The queue is full.
        """
        if self._count >= self.settings.max_queue_size:
            raise Unavailable(
                f"exceeds maximum queue size, {self.settings.max_queue_size}", remedy="try later"
            )
        request.queued, request.waiting = now, True
        timeout = self._timeout(request)
        if timeout:
            heapq.heappush(self._deadlines, (now + timeout, next(self._order), request))
        self._levels[self._level(request)].append(request)
        self._count += 1
        self.rows += request.rows

    def _level(self, request: Pending) -> int:
        levels = len(self._levels)
        wanted = request.priority or self.settings.default_priority_level or levels
        return min(wanted, levels) - 1

    def _timeout(self, request: Pending) -> int:
        """Nanoseconds; 0: none."""
        default = self.settings.default_timeout_microseconds * 1000
        own = request.timeout if self.settings.allow_timeout_override else 0
        return min(own, default) if own and default else own or default

    def remove(self, request: Pending) -> None:
        """Forget a waiting request, as its client is gone."""
        if request.waiting:
            request.waiting, request.inputs = False, ()
            self._count -= 1
            self.rows -= request.rows
            self._tidy()

    def _tidy(self) -> None:
        """Drop what does not wait any more, where it is more than what does."""
        for index, level in enumerate(self._levels):
            if len(level) > 2 * self._count + 64:
                self._levels[index] = deque(r for r in level if r.waiting)
        if len(self._deadlines) > 2 * self._count + 64:
            self._deadlines = [entry for entry in self._deadlines if entry[2].waiting]
            heapq.heapify(self._deadlines)

    def expire(self, now: int) -> list[Pending]:
        """Take out the requests past their deadline, or put them behind all others (DELAY).

        Returns:
            Those that are refused.
        """
        refused = []
        while self._deadlines and self._deadlines[0][0] <= now:
            request = heapq.heappop(self._deadlines)[2]
            if not request.waiting:
                continue
            if self.settings.timeout_action == "DELAY":
                level = self._level(request)
                self._levels[level].remove(request)
                self._late.append(request)
            else:
                self.remove(request)
                refused.append(request)
        return refused

    def next_deadline(self) -> int | None:
        """When the next request may expire."""
        while self._deadlines and not self._deadlines[0][2].waiting:
            heapq.heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else None

    def oldest(self) -> int | None:
        """When the request that waits longest has arrived."""
        heads = []
        for level in (*self._levels, self._late):
            while level and not level[0].waiting:
                level.popleft()
            if level:
                heads.append(level[0].queued)
        return min(heads) if heads else None

    def take(self, limit: int) -> list[Pending]:
        """Take out the most urgent requests, in order, of at most `limit` samples together."""
        taken: list[Pending] = []
        for level in (*self._levels, self._late):
            while level:
                first = level[0]
                if first.waiting and first.rows > limit:
                    return taken
                level.popleft()
                if not first.waiting:
                    continue
                first.waiting = False
                limit -= first.rows
                self.rows -= first.rows
                self._count -= 1
                taken.append(first)
        self._tidy()
        return taken

    def give_back(self, requests: Sequence[Pending], now: int) -> None:
        """Put requests back in front, as the rank that had them is lost; the limit is not asked."""
        for request in reversed(requests):
            request.waiting = True
            self._levels[self._level(request)].appendleft(request)
            self._count += 1
            self.rows += request.rows
            if timeout := self._timeout(request):
                entry = (request.queued + timeout, next(self._order), request)
                heapq.heappush(self._deadlines, entry)

    def clear(self, error: ServingError) -> None:
        """Refuse all."""
        for request in self.take(1 << 60):
            request.finish(error)
