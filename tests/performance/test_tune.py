"""The table that `auto` reads."""

from __future__ import annotations

from pathlib import Path

from mpidl.collectives.engine.select import load_table
from mpidl.performance.tune import fastest_by_size, save_table


def test_another_algorithm_must_be_clearly_faster() -> None:
    rows = [
        (4, {"ring": 5.0, "doubling": 1.0}),
        (16, {"ring": 0.99, "doubling": 1.0}),  # a near tie
        (64, {"ring": 0.9, "doubling": 1.0}),
    ]
    assert fastest_by_size(rows) == [(0, "doubling"), (64, "ring")]


def test_tables_of_other_placements_stay(tmp_path: Path) -> None:
    path = tmp_path / "new" / "tune.json"
    save_table(path, "2x1", [(0, "ring")], {})
    save_table(path, "4x2", [(0, "tree"), (64, "ring")], {"ranks": 4})
    assert load_table(path) == {"2x1": [(0, "ring")], "4x2": [(0, "tree"), (64, "ring")]}
