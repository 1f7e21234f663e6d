"""How often somebody may ask, and how often somebody may fail to say who they are.

Plain objects: the time is a number of seconds that the caller gives. Memory is bounded: the least
recently seen are forgotten, which is as if they had not asked for a while.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Generic, TypeVar

MOST = 1 << 14  # of those that are remembered
V = TypeVar("V")


class Recent(Generic[V]):
    """A dictionary of at most `MOST` entries, without the least recently used ones."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._entries: OrderedDict[str, V] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: str) -> V | None:
        """The value of a key, which is used now."""
        if key in self._entries:
            self._entries.move_to_end(key)
        return self._entries.get(key)

    def set(self, key: str, value: V) -> None:
        """Set the value of a key, which is used now."""
        self._entries[key] = value
        self._entries.move_to_end(key)
        if len(self._entries) > self._most:
            self._entries.popitem(last=False)

    def clear(self) -> None:
        """Forget all."""
        self._entries.clear()


@dataclass
class _Bucket:
    """What is left of a rate: requests, and when that was true."""

    left: float
    at: float


class RateLimit:
    """A token bucket for each name.

    Args:
        rate: Requests a second; 0: any number.
        burst: Requests at once after a pause.
    """

    def __init__(self, rate: float, burst: int) -> None:
        self._rate = rate
        self._burst = max(1.0, float(burst))
        self._buckets: Recent[_Bucket] = Recent()

    def take(self, name: str, now: float) -> bool:
        """Whether one more request is within the limit; it then counts."""
        if not self._rate:
            return True
        bucket = self._buckets.get(name) or _Bucket(self._burst, now)
        left = min(self._burst, bucket.left + max(0.0, now - bucket.at) * self._rate)
        allowed = left >= 1
        self._buckets.set(name, _Bucket(left - allowed, now))
        return allowed


@dataclass
class _Failures:
    """Failures since `since`; `until`: locked."""

    since: float
    count: int = 0
    until: float = 0.0


class Lockout:
    """Refuses addresses that have failed to say who they are too often.

    Args:
        failures: Within `seconds`, after which an address is locked; 0: never.
        seconds: Of counting, and of being locked.
    """

    def __init__(self, failures: int, seconds: float) -> None:
        self._most = failures
        self._seconds = seconds
        self._addresses: Recent[_Failures] = Recent()

    def is_locked(self, address: str, now: float) -> bool:
        """Whether an address is refused whatever it says."""
        found = self._addresses.get(address)
        return found is not None and now < found.until

    def fail(self, address: str, now: float) -> bool:
        """Count a failure; returns whether the address is locked from now on."""
        found = self._addresses.get(address)
        if found is None or now - found.since > self._seconds:
            found = _Failures(now)
        found.count += 1
        locks = bool(self._most) and found.count >= self._most
        if locks:
            found = _Failures(now, until=now + self._seconds)
        self._addresses.set(address, found)
        return locks
