"""What a group keeps between calls: written schedules, and memory to receive into."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain, islice
from typing import Any

from mpidl.collectives.schedule import Algorithm, Exchange, Round
from mpidl.comm.transport import array_module

PLANS = 256  # that are kept
LONGEST = 64  # rounds of a plan that is kept


class Plan(list[Round]):
    """The whole schedule of one rank.

    Attributes:
        exchanges_only: All its rounds are exchanges.
    """

    def __init__(self, rounds: Iterable[Round]) -> None:
        super().__init__(rounds)
        self.exchanges_only = all(type(step) is Exchange for step in self)


class PlanCache:
    """The short schedules of one rank: writing one takes longer than a small message.

    Args:
        rank: This rank.
        size: The number of ranks.
    """

    def __init__(self, rank: int, size: int) -> None:
        self.rank = rank
        self.size = size
        self._plans: dict[tuple[Algorithm, int], Plan] = {}

    def __call__(self, algorithm: Algorithm, length: int) -> Iterable[Round]:
        """This rank's rounds for `length` elements; those of a long schedule one by one."""
        key = (algorithm, length)
        held = self._plans.get(key)
        if held is not None:
            return held
        schedule = algorithm(self.rank, self.size, length)
        plan = Plan(islice(schedule, LONGEST + 1))
        if len(plan) > LONGEST:
            return chain(plan, schedule)
        if len(self._plans) >= PLANS:
            self._plans.clear()
        self._plans[key] = plan
        return plan


class Scratch:
    """Reused memory."""

    def __init__(self) -> None:
        self._held: dict[tuple[Any, ...], Any] = {}

    def __call__(self, like: Any, count: int, turn: int) -> Any:
        """An array of `count` elements, undefined.

        Args:
            like: An array of the wanted dtype and kind of memory.
            count: Elements.
            turn: 0 or 1: two of them can be in use at a time.
        """
        key = (like.dtype.num, type(like), turn)
        held = self._held.get(key)
        if held is None or held.size < count:
            held = self._held[key] = array_module(like).empty(count, like.dtype)
        return held[:count]
