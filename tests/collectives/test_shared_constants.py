"""The numbers that kernels/cpu/shared.c and its caller must agree on."""

from __future__ import annotations

import re

import pytest

from mpidl.backend.kernels import kernel_folder
from mpidl.collectives.engine import shared

SOURCE = (kernel_folder() / "cpu" / "shared.c").read_text()


def constant(name: str) -> int:
    """The value of an enumeration constant of shared.c, with shifts."""
    found = re.search(rf"\b{name} = (\d+)(?: << (\d+))?", SOURCE)
    assert found is not None, f"shared.c has no {name}"
    return int(found[1]) << int(found[2] or 0)


@pytest.mark.parametrize("name", ["MAX_RANKS", "SEGMENT", "COMPARE"])
def test_the_c_source_has_the_same_number(name: str) -> None:
    assert constant(name) == getattr(shared, name)


def test_partial_sums_of_the_largest_node_fit_the_stack() -> None:
    """The stack holds one partial sum for each bit of a rank, and the one that is added."""
    most = max(bin(rank).count("1") + 1 for rank in range(shared.MAX_RANKS))
    assert most <= constant("MAX_LEVELS")
