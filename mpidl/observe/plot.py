"""Pictures: a run's loss and accuracy, measured collectives, predicted scaling."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def plot_run(records: list[dict[str, Any]], path: Path, title: str) -> None:
    """Draw training loss and accuracy (from step records) and test loss and accuracy (from evaluations) into a PNG."""
    plt = _pyplot()
    steps = [r for r in records if r["kind"] == "step"]
    tests = [r for r in records if r["kind"] == "evaluation"]
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for axis, name, label in zip(axes, ("loss", "accuracy"), ("loss (mean cross-entropy)", "accuracy (%)"), strict=True):
        scale = 100 if name == "accuracy" else 1
        axis.plot([r["step"] for r in steps], [r[name] * scale for r in steps], color="0.6", lw=1, label="training batches")
        if tests:
            axis.plot([r["step"] for r in tests], [r[name] * scale for r in tests], "o-", color="tab:blue", label="test set")
        axis.set(xlabel="step", ylabel=label)
        axis.grid(alpha=0.3)
        axis.legend()
    axes[0].set_yscale("log")
    _finish(figure, path, title)


def plot_collectives(results: Sequence[dict[str, Any]], path: Path, title: str) -> None:
    """Draw the rows of `mpidl bench collectives`: time and bus bandwidth over message size, a line for each algorithm."""
    plt = _pyplot()
    figure, axes = plt.subplots(1, 2, figsize=(12, 5), layout="constrained")
    for name in dict.fromkeys(row["algorithm"] for row in results):
        rows = [row for row in results if row["algorithm"] == name]
        style: dict[str, Any] = {"lw": 2.5, "color": "black"} if name == "auto" else {"lw": 1.2}
        style["ls"] = "--" if name in ("native", "gloo") else "-"
        for axis, key in zip(axes, ("median_us", "bus_gb_s"), strict=True):
            axis.plot([row["bytes"] for row in rows], [row[key] for row in rows], label=name, **style)
    for axis, label in zip(axes, ("time of the slowest rank, median (us)", "bus bandwidth (GB/s)"), strict=True):
        axis.set(xlabel="message (bytes)", ylabel=label, xscale="log")
        axis.grid(alpha=0.3)
    axes[0].set_yscale("log")
    axes[0].legend()
    _finish(figure, path, title)


def plot_plan(steps: Sequence[Any], path: Path, title: str) -> None:
    """Draw the steps of `mpidl plan`: efficiency over ranks, and the time of one bucket's exchange by algorithm."""
    plt = _pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 5), layout="constrained")
    ranks = [step.ranks for step in steps]
    left.plot(ranks, [100 * step.efficiency for step in steps], "o-", color="black")
    left.axhline(90, color="0.7", ls=":")
    left.set(xlabel="ranks", ylabel="predicted weak-scaling efficiency (%)", xscale="log", ylim=(0, 104))
    for name in sorted({name for step in steps for name in step.algorithms}):
        rows = [(step.ranks, 1e3 * step.algorithms[name]) for step in steps if name in step.algorithms]
        right.plot(*zip(*rows, strict=True), "o-", ms=3, label=name)
    right.set(xlabel="ranks", ylabel="one bucket's exchange (ms)", xscale="log", yscale="log")
    right.legend()
    for axis in (left, right):
        axis.set_xscale("log", base=2)
        axis.grid(alpha=0.3)
    _finish(figure, path, title)


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    return plt


def _finish(figure: Any, path: Path, title: str) -> None:
    figure.suptitle(title)
    figure.savefig(path, dpi=120)
    _pyplot().close(figure)
