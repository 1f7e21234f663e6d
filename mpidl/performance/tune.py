"""Measures the fastest all-reduce algorithm at each size, for the table that `auto` reads."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mpidl.collectives import all_reduce
from mpidl.collectives.engine.select import TABLE_VERSION, load_table
from mpidl.collectives.group import Group
from mpidl.files import write_file
from mpidl.performance.measure import time_interleaved, usable_algorithms

SIZES = tuple(4 << (2 * power) for power in range(14))  # 4 B to 256 MiB
MARGIN = 0.97  # another algorithm than that of the size below must be 3 % faster


def measure_sizes(group: Group, largest: int) -> list[tuple[int, dict[str, float]]]:
    """Time all algorithms that these ranks can use. Collective.

    Args:
        group: The ranks.
        largest: Bytes of the largest message.

    Returns:
        For each size: bytes, and {algorithm: median seconds}.
    """
    rows = []
    for nbytes in (size for size in SIZES if size <= largest):
        buffer = np.zeros(nbytes // 4, np.float32)
        calls = {
            name: partial(all_reduce, buffer, comm=group, algorithm=name)
            for name in usable_algorithms(group)
        }
        rows.append((nbytes, time_interleaved(calls, group, seconds=0.3, min_rounds=3)))
    return rows


def fastest_by_size(rows: list[tuple[int, dict[str, float]]]) -> list[tuple[int, str]]:
    """The table of one placement: [(smallest bytes, algorithm)], ascending.

    A near tie keeps the algorithm of the size below.
    """
    table: list[tuple[int, str]] = []
    for nbytes, times in rows:
        best = min(times, key=lambda name: times[name])
        if not table or times[best] < MARGIN * times[table[-1][1]]:
            table.append((nbytes if table else 0, best))
    return table


def save_table(
    path: Path, layout: str, table: list[tuple[int, str]], machine: dict[str, Any]
) -> None:
    """Add the table of one placement to the file; those of other placements stay.

    Args:
        path: The file, replaced atomically.
        layout: The placement, as from `select.layout_key`.
        table: As from `fastest_by_size`.
        machine: Where it was measured, for readers of the file.
    """
    tables = {key: [list(row) for row in rows] for key, rows in load_table(path).items()}
    tables[layout] = [list(row) for row in table]
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"version": TABLE_VERSION, "all_reduce": tables, "machine": machine}
    write_file(path, f"{json.dumps(content, indent=1)}\n".encode())
    load_table.cache_clear()
