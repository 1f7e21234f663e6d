"""Plots: each kind is drawn into a file that is complete."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mpidl.errors import ConfigError
from mpidl.observe import plot
from mpidl.performance.machine import Machine
from mpidl.performance.step import plan_step

RECORDS: list[dict[str, Any]] = [
    {"kind": kind, "step": step, "loss": 1 / step, "accuracy": 0.5, "seconds": step, "seen": step}
    | {"sent_bytes": 1e6 * step}
    for step in (1, 2, 3)
    for kind in ("step", "evaluation")
]
OUTCOME = {"name": "gossip", "records": RECORDS, "report": {"staleness": {"0": 3, "2": 1}}}
BENCH = [
    {"algorithm": name, "bytes": size, "median_us": 3.0, "bus_gb_s": 1.0}
    for name in ("auto", "ring", "native")
    for size in (4, 1024)
]


def plans() -> list[Any]:
    return [
        plan_step(
            Machine(),
            ranks,
            gradient_bytes=10**8,
            compute=0.25,
            bucket_bytes=25 << 20,
            overlap=True,
        )
        for ranks in (2, 8)
    ]


KINDS: dict[str, Callable[[Path], None]] = {
    "run": lambda path: plot.plot_run(RECORDS, path, "title"),
    "run without a test set": lambda path: plot.plot_run(RECORDS[::2], path, "title"),
    "collectives": lambda path: plot.plot_collectives(BENCH, path, "title"),
    "plan": lambda path: plot.plot_plan(plans(), path, "title"),
    "comparison": lambda path: plot.plot_comparison([OUTCOME, OUTCOME], path, "title"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_plot_is_drawn(tmp_path: Path, kind: str) -> None:
    KINDS[kind](tmp_path / "a.svg")
    assert [path.name for path in tmp_path.iterdir()] == ["a.svg"]
    text = (tmp_path / "a.svg").read_text()
    assert text.rstrip().endswith("</svg>") and text.count("<path") > 10


@pytest.mark.parametrize("name", ["a.xyz", "a", "none/a.png", "."])
def test_impossible_files_are_refused_before_any_work(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        plot.check_plot(tmp_path / name)
    assert caught.value.remedy
