"""Measures which all-reduce algorithm is fastest here at each size, and writes the table that `auto` reads."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mpidl.collectives.api import NAMES, all_reduce
from mpidl.collectives.engine.select import TABLE_VERSION, layout_key, load_table, table_path
from mpidl.collectives.group import Group
from mpidl.files import write_file
from mpidl.performance.measure import interleaved

SIZES = tuple(4 << (2 * power) for power in range(14))  # 4 B to 256 MiB
MARGIN = 0.97  # another algorithm than the one for the size below must be faster by 3 %


def measure_sizes(group: Group, largest: int) -> list[tuple[int, dict[str, float]]]:
    """[(bytes, {algorithm: median seconds})] for all algorithms that are usable here. Collective."""
    names = [name for name in NAMES if name != "hierarchical" or group.shares]
    rows = []
    for nbytes in (size for size in SIZES if size <= largest):
        buffer = np.zeros(nbytes // 4, np.float32)
        calls: dict[str, Callable[[], None]] = {
            name: partial(all_reduce, buffer, comm=group, algorithm=name) for name in names
        }
        rows.append((nbytes, interleaved(calls, group, seconds=0.3, least=3)))
    return rows


def table_of(rows: list[tuple[int, dict[str, float]]]) -> list[tuple[int, str]]:
    """[(smallest bytes, algorithm)]: the fastest at each size; a near tie keeps the algorithm of the size below."""
    table: list[tuple[int, str]] = []
    for nbytes, taken in rows:
        best = min(taken, key=lambda name: taken[name])
        if not table or taken[best] < MARGIN * taken[table[-1][1]]:
            table.append((nbytes if table else 0, best))
    return table


def save(path: Path, layout: str, table: list[tuple[int, str]], about: dict[str, Any]) -> None:
    """Add the table of one placement to the file, and keep those of others. Written beside, then renamed."""
    held = {key: [list(row) for row in rows] for key, rows in load_table(path).items()}
    held[layout] = [list(row) for row in table]
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"version": TABLE_VERSION, "all_reduce": held, "machine": about}, indent=1)
    write_file(path, f"{text}\n".encode())
    load_table.cache_clear()


__all__ = ["SIZES", "layout_key", "measure_sizes", "save", "table_of", "table_path"]
