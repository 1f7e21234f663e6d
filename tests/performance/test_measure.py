"""Fitting latency and bandwidth to measured times."""

from __future__ import annotations

import pytest

from mpidl.performance.measure import fit


def test_the_fit_finds_latency_and_rate() -> None:
    sizes = (64, 1 << 20, 1 << 22)
    latency, rate = fit(sizes, [1e-5 + size / 2e9 for size in sizes])
    assert latency == pytest.approx(1e-5, rel=0.01) and rate == pytest.approx(2e9)
