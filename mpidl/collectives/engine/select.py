"""Which algorithm `auto` uses: by message size and placement, or from a measured table."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from mpidl.settings import TUNE

TABLE_VERSION = 1
SHORT, LONG = 64 << 10, 1 << 20  # bytes


def table_path() -> Path:
    """Where `mpidl tune` writes: MPIDL_TUNE, or the user's configuration folder."""
    config = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(TUNE.value or f"{config}/mpidl/tune.json").expanduser()


def layout_key(nodes: Sequence[int]) -> str:
    """Names a placement of ranks: ranks x nodes."""
    return f"{len(nodes)}x{max(nodes) + 1}"


@cache
def load_table(path: Path) -> dict[str, list[tuple[int, str]]]:
    """The measured tables.

    Returns:
        {layout: [(bytes, algorithm), ...] ascending}; empty where there is no file, or one of
        another version.
    """
    try:
        held: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    if held.get("version") != TABLE_VERSION:
        return {}
    return {
        key: [(int(size), str(name)) for size, name in rows]
        for key, rows in held["all_reduce"].items()
    }


def choose(
    nbytes: int, nodes: Sequence[int], *, half: bool = False, shared: bool = True, table: Any = None
) -> str:
    """The name of an all-reduce algorithm.

    Args:
        nbytes: Of the buffer; the measured row nearest below counts.
        nodes: The node of each rank.
        half: 16-bit floats, which MPI cannot reduce by itself.
        shared: Ranks of a node share memory.
        table: As from `load_table`; without it a rule that needs no measurement.
    """
    size, count = len(nodes), max(nodes) + 1
    rows: list[tuple[int, str]] | None = (table or {}).get(layout_key(nodes))
    if rows and not half:
        return next((name for limit, name in reversed(rows) if limit <= nbytes), rows[0][1])
    if count == 1 and shared:
        return "hierarchical"
    if half:
        return "direct"
    if nbytes <= SHORT:
        return "native"
    if shared and count < size:
        return "hierarchical"
    return "ring" if nbytes >= LONG else "rabenseifner"
