"""The registry of all-reduces: its entries, their needs, and the table in the documents."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from mpidl.collectives.algorithms import ALL_REDUCE
from mpidl.collectives.engine.plans import LONGEST, PLANS, Plan, PlanCache
from mpidl.collectives.schedule import AllReduce, all_reduce_bytes
from mpidl.performance.cost import predict
from mpidl.performance.machine import Machine

PAGE = Path(__file__).parent.parent.parent / "docs" / "collectives.md"


@pytest.mark.parametrize("name", ALL_REDUCE)
def test_an_entry_makes_one_schedule_for_a_placement(name: str) -> None:
    entry = ALL_REDUCE[name]
    assert isinstance(entry, AllReduce)
    assert entry.make((0, 0, 1, 1)) is entry.make((0, 0, 1, 1)), "plans are cached by it"


@pytest.mark.parametrize("name", ALL_REDUCE)
def test_a_fallback_needs_nothing(name: str) -> None:
    fallback = ALL_REDUCE[ALL_REDUCE[name].fallback]
    assert fallback.half and not fallback.shared_memory


@pytest.mark.parametrize("name", ALL_REDUCE)
def test_every_algorithm_has_a_cost(name: str) -> None:
    machine = Machine(ranks_per_node=2)
    algorithm = ALL_REDUCE[name].make(machine.nodes(8))
    assert predict(algorithm, 1 << 20, 8, machine) > 0


def test_the_table_in_the_documents_is_the_registry() -> None:
    section = PAGE.read_text().split("## All-reduce algorithms")[1].split("\n## ")[0]
    documented = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
    assert sorted(documented) == sorted([*ALL_REDUCE, "auto"])


def test_least_traffic_of_an_all_reduce() -> None:
    assert all_reduce_bytes(1000, 1) == 0
    assert all_reduce_bytes(1000, 4) == 1500


def test_short_plans_are_kept_and_long_ones_are_not() -> None:
    cache = PlanCache(0, 2)
    ring = ALL_REDUCE["ring"].make((0, 1))
    plan = cache(ring, 100)
    assert isinstance(plan, Plan) and plan.exchanges_only
    assert cache(ring, 100) is plan
    long = LONGEST * (1 << 20)
    assert list(cache(ring, long)) == list(ring(0, 2, long))
    for length in np.arange(PLANS) + 1000:
        cache(ring, int(length))
    assert cache(ring, 100) is not plan, "the cache is bounded"
