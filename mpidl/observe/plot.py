"""Pictures: a run's loss and accuracy, measured collectives, predicted scaling."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mpidl.errors import ConfigError
from mpidl.files import check_folder, write_atomically


def plot_run(records: list[dict[str, Any]], path: Path, title: str) -> None:
    """Draw training loss and accuracy (from step records) and test loss and accuracy (from evaluations) into a PNG."""
    plt = _pyplot()
    steps = [r for r in records if r["kind"] == "step"]
    tests = [r for r in records if r["kind"] == "evaluation"]
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for axis, name, label in zip(
        axes, ("loss", "accuracy"), ("loss (mean cross-entropy)", "accuracy (%)"), strict=True
    ):
        scale = 100 if name == "accuracy" else 1
        axis.plot(
            [r["step"] for r in steps],
            [r[name] * scale for r in steps],
            color="0.6",
            lw=1,
            label="training batches",
        )
        if tests:
            axis.plot(
                [r["step"] for r in tests],
                [r[name] * scale for r in tests],
                "o-",
                color="tab:blue",
                label="test set",
            )
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
            axis.plot(
                [row["bytes"] for row in rows], [row[key] for row in rows], label=name, **style
            )
    for axis, label in zip(
        axes, ("time of the slowest rank, median (us)", "bus bandwidth (GB/s)"), strict=True
    ):
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
    left.set(
        xlabel="ranks", ylabel="predicted weak-scaling efficiency (%)", xscale="log", ylim=(0, 104)
    )
    for name in sorted({name for step in steps for name in step.algorithms}):
        rows = [
            (step.ranks, 1e3 * step.algorithms[name]) for step in steps if name in step.algorithms
        ]
        right.plot(*zip(*rows, strict=True), "o-", ms=3, label=name)
    right.set(xlabel="ranks", ylabel="one bucket's exchange (ms)", xscale="log", yscale="log")
    right.legend()
    for axis in (left, right):
        axis.set_xscale("log", base=2)
        axis.grid(alpha=0.3)
    _finish(figure, path, title)


def plot_comparison(rows: Sequence[dict[str, Any]], path: Path, title: str) -> None:
    """Draw the outcomes of `mpidl compare`: test and training loss over time, samples and bytes, and how stale updates were."""
    plt = _pyplot()
    figure, axes = plt.subplots(2, 2, figsize=(12, 8), layout="constrained")
    keys = (
        ("seconds", "wall time (s)"),
        ("seen", "samples"),
        ("sent_bytes", "bytes sent by a rank"),
    )
    for number, row in enumerate(rows):
        color = f"C{number}"
        steps = [r for r in row["records"] if r["kind"] == "step" and "seconds" in r]
        tests = [r for r in row["records"] if r["kind"] == "evaluation"]
        for axis, (key, _) in zip(axes.flat, keys, strict=False):
            axis.plot(
                [r[key] for r in steps],
                _smooth([r["loss"] for r in steps]),
                color=color,
                alpha=0.35,
                lw=1,
            )
            axis.plot(
                [r[key] for r in tests],
                [r["loss"] for r in tests],
                "o-",
                color=color,
                ms=4,
                label=row["name"],
            )
        staleness = {int(k): v for k, v in row["report"].get("staleness", {}).items()}
        total = sum(staleness.values())
        if total:
            axes[1, 1].plot(
                list(staleness),
                [v / total for v in staleness.values()],
                "o-",
                color=color,
                label=row["name"],
            )
    for axis, (_, label) in zip(axes.flat, keys, strict=False):
        axis.set(xlabel=label, ylabel="loss (test set; thin: training batches)", yscale="log")
    axes[1, 0].set_xscale("symlog", linthresh=1e4)
    axes[1, 0].set_xlim(left=0)
    axes[1, 1].set(
        xlabel="staleness (updates of others between reading and updating)",
        ylabel="share of updates",
    )
    for axis in axes.flat:
        axis.grid(alpha=0.3)
        if axis.has_data():
            axis.legend(fontsize=8)
    _finish(figure, path, title)


def _smooth(values: list[float], width: int = 9) -> list[float]:
    """Running mean."""
    return [
        sum(values[max(0, i - width + 1) : i + 1]) / len(values[max(0, i - width + 1) : i + 1])
        for i in range(len(values))
    ]


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    return plt


def check_plot(path: Path) -> None:
    """ConfigError before any work if no picture can be written to `path`."""
    from matplotlib.backend_bases import FigureCanvasBase

    kinds = FigureCanvasBase.get_supported_filetypes()
    if path.suffix[1:].lower() not in kinds:
        known = ", ".join(f".{kind}" for kind in sorted(kinds))
        raise ConfigError(
            f"unknown kind of picture {path.suffix!r}",
            where=str(path),
            remedy=f"use one of {known}",
        )
    check_folder(path)


def _finish(figure: Any, path: Path, title: str) -> None:
    figure.suptitle(title)
    try:
        with write_atomically(path) as partial:
            figure.savefig(partial, dpi=120, format=path.suffix[1:].lower())
    finally:
        _pyplot().close(figure)
