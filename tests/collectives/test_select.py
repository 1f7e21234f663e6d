"""The automatic choice of an all-reduce algorithm."""

from __future__ import annotations

from mpidl.collectives.engine.select import choose


def test_the_choice() -> None:
    one, four, flat = (0,) * 4, (0, 0, 1, 1), (0, 1, 2, 3)
    assert choose(4, one) == "hierarchical"
    assert choose(4, one, shared=False) == choose(4, flat) == "native"
    assert (
        choose(1 << 22, four) == "hierarchical"
        and choose(1 << 22, flat) == "ring"
        and choose(1 << 18, flat) == "rabenseifner"
    )
    assert choose(1 << 22, flat, half=True) == "direct"
    table = {"4x4": [(0, "doubling"), (1000, "tree")]}
    assert choose(4, flat, table=table) == "doubling" and choose(5000, flat, table=table) == "tree"
    assert choose(4, four, table=table) == "native"
