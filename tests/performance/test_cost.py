"""Predictions, compared with formulas and with a clock for each rank."""

from __future__ import annotations

import math

import pytest

from mpidl.collectives.algorithms.hierarchical import hierarchical
from mpidl.collectives.algorithms.rabenseifner import rabenseifner
from mpidl.collectives.algorithms.recursive_doubling import recursive_doubling
from mpidl.collectives.algorithms.ring import ring
from mpidl.collectives.algorithms.tree import tree
from mpidl.performance.cost import predict
from mpidl.performance.machine import Machine
from tests.performance.clocks import latest_clock

MACHINE = Machine(latency_us=5, bandwidth_gb_s=10, reduce_gb_s=1e9)


@pytest.mark.parametrize("size", [2, 3, 8, 64])
def test_the_ring_costs_what_the_book_says(size: int) -> None:
    length = size * 4096
    wanted = 2 * (size - 1) * (5e-6 + 4 * 4096 / 10e9)
    assert predict(ring, length, size, MACHINE) == pytest.approx(wanted)
    assert latest_clock(ring, length, size, MACHINE) == pytest.approx(wanted)


@pytest.mark.parametrize("size", [2, 4, 16, 64])
def test_rabenseifner_and_doubling_cost_what_the_book_says(size: int) -> None:
    length, rounds = size * 1024, math.log2(size)
    assert predict(rabenseifner, length, size, MACHINE) == pytest.approx(
        2 * rounds * 5e-6 + 2 * (size - 1) / size * 4 * length / 10e9
    )
    assert latest_clock(recursive_doubling, length, size, MACHINE) == pytest.approx(
        rounds * (5e-6 + 4 * length / 10e9)
    )


@pytest.mark.parametrize("algorithm", [ring, rabenseifner, recursive_doubling, tree])
@pytest.mark.parametrize("size", [2, 5, 8, 32])
@pytest.mark.parametrize("length", [100, 1_000_000])
def test_clocks_never_run_later_than_predicted(algorithm: object, size: int, length: int) -> None:
    machine = Machine(ranks_per_node=4)
    step, clock = (
        predict(algorithm, length, size, machine),
        latest_clock(algorithm, length, size, machine),
    )  # type: ignore[arg-type]
    assert clock <= step * 1.01 and step <= 3 * clock


def test_messages_that_leave_a_node_together_share_its_link() -> None:
    alone, crowded = Machine(ranks_per_node=1), Machine(ranks_per_node=8)
    assert (
        predict(recursive_doubling, 1 << 20, 64, crowded)
        > 3 * predict(recursive_doubling, 1 << 20, 64, alone) / 2
    )
    two_levels = predict(hierarchical(crowded.nodes(64)), 1 << 20, 64, crowded)
    assert two_levels < predict(recursive_doubling, 1 << 20, 64, crowded)
