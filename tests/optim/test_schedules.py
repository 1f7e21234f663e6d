"""Learning-rate schedules."""

from __future__ import annotations

import pytest

from mpidl.optim import LearningRate


def test_warm_up_is_linear_and_reaches_the_peak() -> None:
    rate = LearningRate(0.4, 100, "constant", warmup_steps=4)
    assert [rate.at(step) for step in range(6)] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4, 0.4])


def test_cosine_falls_from_peak_to_floor() -> None:
    rate = LearningRate(0.4, 110, "cosine", warmup_steps=10, floor=0.1)
    assert (
        rate.at(10) == pytest.approx(0.4)
        and rate.at(60) == pytest.approx(0.22)
        and rate.at(110) == pytest.approx(0.04)
    )
    rates = [rate.at(step) for step in range(10, 120)]
    assert rates == sorted(rates, reverse=True) and rates[-1] == pytest.approx(0.04)


def test_steps() -> None:
    rate = LearningRate(1.0, 100, "step", milestones=[30, 60], gamma=0.5)
    assert [rate.at(step) for step in (0, 29, 30, 59, 60, 99)] == [1, 1, 0.5, 0.5, 0.25, 0.25]
