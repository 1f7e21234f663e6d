"""Rates and lock-outs, with a clock of the test."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mpidl.serving.limits import Lockout, RateLimit, Recent


@given(st.floats(0.1, 100), st.integers(1, 20), st.lists(st.floats(0, 2), min_size=1, max_size=200))
def test_no_span_of_time_has_more_than_its_rate_and_a_burst(
    rate: float, burst: int, pauses: list[float]
) -> None:
    limit, now, taken = RateLimit(rate, burst), 100.0, []
    for pause in pauses:
        now += pause
        if limit.take("a", now):
            taken.append(now)
    for first in range(len(taken)):
        for last in range(first, len(taken)):
            most = burst + rate * (taken[last] - taken[first])
            assert last - first + 1 <= most + 1e-6
    assert taken[0] == 100.0 + pauses[0]
    assert limit.take("b", now)  # others are not touched


def test_a_slow_client_is_never_refused() -> None:
    limit = RateLimit(10, 1)
    assert all(limit.take("a", 0.1001 * k) for k in range(1000))
    assert all(RateLimit(0, 1).take("a", 0.0) for _ in range(1000))


def test_an_address_is_locked_and_free_again() -> None:
    made = Lockout(3, 60)
    assert [made.fail("a", t) for t in (0, 1, 2)] == [False, False, True]
    assert made.is_locked("a", 3) and made.is_locked("a", 61.9) and not made.is_locked("a", 62.1)
    assert not made.is_locked("b", 3)
    # failures that are far apart are forgotten
    assert not any(made.fail("c", 61 * k) for k in range(10))
    assert not any(Lockout(0, 60).fail("a", 0) for _ in range(100))


def test_memory_is_bounded() -> None:
    made: Recent[int] = Recent(10)
    for k in range(1000):
        made.set(str(k), k)
        made.get("0" if k < 500 else "500")
    assert len(made) == 10 and made.get("0") is None and made.get("500") == 500
