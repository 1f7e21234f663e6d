"""Predicted training steps."""

from __future__ import annotations

import pytest

from mpidl.performance.machine import Machine
from mpidl.performance.step import plan_step


def test_resnet_50_scales_to_1024_ranks() -> None:
    machine = Machine(latency_us=5, bandwidth_gb_s=12.5)
    step = plan_step(machine, 1024, gradient_bytes=102_000_000, compute=0.25, bucket_bytes=25 << 20)
    assert step.efficiency >= 0.9
    assert (
        step.seconds == pytest.approx(0.25 + step.exposed)
        and step.exposed >= step.bucket_seconds * 0.999
    )
    apart = plan_step(
        machine,
        1024,
        gradient_bytes=102_000_000,
        compute=0.25,
        bucket_bytes=25 << 20,
        overlap=False,
    )
    assert (
        apart.exposed == pytest.approx(apart.communication) and apart.efficiency < step.efficiency
    )


def test_a_slow_network_shows() -> None:
    slow = plan_step(
        Machine(bandwidth_gb_s=0.125),
        64,
        gradient_bytes=102_000_000,
        compute=0.25,
        bucket_bytes=25 << 20,
    )
    assert slow.efficiency < 0.2
