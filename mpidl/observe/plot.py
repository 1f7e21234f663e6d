"""Plots: loss and accuracy of runs, measured collectives, predicted scaling. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mpidl.errors import ConfigError
from mpidl.extras import load_extra
from mpidl.files import check_folder, write_atomically


def plot_run(
    records: list[dict[str, Any]],
    path: Path,
    title: str,
    metric: str = "accuracy",
    *,
    percent: bool = True,
) -> None:
    """Draw loss and a metric over steps, of training batches and of the test set.

    Args:
        records: From `read_metrics`.
        path: The file; its suffix chooses the format.
        title: Above the plot.
        metric: Its name in the records; "loss": only that.
        percent: Whether the metric is a share.

    Raises:
        PlatformError: matplotlib is missing.
        OSError: The file cannot be written.
    """
    plt = pyplot()
    steps = [r for r in records if r["kind"] == "step"]
    tests = [r for r in records if r["kind"] == "evaluation"]
    unit = " (%)" if percent else ""
    labels = {"loss": "loss"} | {metric: metric.replace("_", " ") + unit}
    names = [name for name in labels if any(name in record for record in (*steps, *tests))]
    size = (5 * max(len(names), 1), 4)
    figure, grid = plt.subplots(
        1, len(names) or 1, figsize=size, layout="constrained", squeeze=False
    )
    axes = grid[0]
    for axis, name in zip(axes, names, strict=False):
        scale = 100 if name == metric != "loss" and percent else 1
        seen = [r for r in steps if name in r]
        if seen:
            axis.plot(
                [r["step"] for r in seen],
                [r[name] * scale for r in seen],
                color="0.6",
                lw=1,
                label="training batches",
            )
        if tests:
            axis.plot(
                [r["step"] for r in tests if name in r],
                [r[name] * scale for r in tests if name in r],
                "o-",
                color="tab:blue",
                label="test set",
            )
        axis.set(xlabel="step", ylabel="loss" if name == "loss" else labels[name])
        axis.grid(alpha=0.3)
        axis.legend()
    axes[0].set_yscale("log")
    finish(figure, path, title)


def plot_collectives(results: Sequence[dict[str, Any]], path: Path, title: str) -> None:
    """Draw time and bus bandwidth over message size, a line for each algorithm.

    Args:
        results: The rows of `mpidl bench collectives`.
        path: The file.
        title: Above the plot.
    """
    plt = pyplot()
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
    finish(figure, path, title)


def plot_plan(steps: Sequence[Any], path: Path, title: str) -> None:
    """Draw efficiency over ranks, and the time of one bucket's all-reduce by algorithm.

    Args:
        steps: Of `mpidl plan`.
        path: The file.
        title: Above the plot.
    """
    plt = pyplot()
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
    right.set(xlabel="ranks", ylabel="all-reduce of one bucket (ms)", xscale="log", yscale="log")
    right.legend()
    for axis in (left, right):
        axis.set_xscale("log", base=2)
        axis.grid(alpha=0.3)
    finish(figure, path, title)


def plot_load(
    measured: Sequence[tuple[dict[str, Any], Sequence[float]]], path: Path, title: str
) -> None:
    """Draw the latency of a server by percentile, and against its throughput.

    Args:
        measured: Row of `mpidl bench serve`, and seconds of each answered request.
        path: The file.
        title: Above the plot.
    """
    figure, (left, right) = pyplot().subplots(1, 2, figsize=(12, 5), layout="constrained")
    ticker = load_extra("matplotlib.ticker", "drawing plots")
    for row, seconds in measured:
        closed = row["loop"] == "closed"
        label = f"{row['clients']} client(s)" if closed else f"{row['rate']:g} requests/s"
        shares = [1 - (k + 0.5) / len(seconds) for k in range(len(seconds))]
        times = [1e3 * t for t in sorted(seconds, reverse=True)]
        left.plot(shares, times, "-" if closed else "--", label=label)
    left.set(xlabel="share of requests that are faster", ylabel="latency (ms)", yscale="log")
    left.set_xscale("function", functions=(_nines, lambda x: 1 - 10.0**-x))
    left.set_xlim(0, 0.9995)
    left.set_xticks([0, 0.5, 0.9, 0.95, 0.99, 0.999], ["0", "50 %", "90", "95", "99", "99.9"])
    for loop, style in (("closed", "o-"), ("open", "s--")):
        rows = [r for r, seconds in measured if r["loop"] == loop and len(seconds)]
        for number, name in enumerate(("p50", "p95", "p99")):
            pairs = [(r["samples_per_second"], r[f"{name}_ms"]) for r in rows]
            if pairs:
                x, y = zip(*pairs, strict=True)
                right.plot(x, y, style, ms=4, color=f"C{number}", label=f"{name}, {loop} loop")
    right.set(xlabel="answered samples per second", ylabel="latency (ms)", yscale="log")
    for axis in (left, right):
        axis.grid(alpha=0.3)
        axis.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter(ticker.NullFormatter())
        if axis.has_data():
            axis.legend()
    finish(figure, path, title)


def _nines(share: Any) -> Any:
    """A scale on which 90 %, 99 % and 99.9 % are equally far apart."""
    import numpy as np

    return -np.log10(np.maximum(1 - share, 1e-9))


def plot_comparison(rows: Sequence[dict[str, Any]], path: Path, title: str) -> None:
    """Draw test and training loss over time, samples and bytes; and the staleness of updates.

    Args:
        rows: The outcomes of `mpidl compare`.
        path: The file.
        title: Above the plot.
    """
    figure, axes = pyplot().subplots(2, 2, figsize=(12, 8), layout="constrained")
    *by_cost, staleness = axes.flat
    for axis, (key, label) in zip(by_cost, _COSTS.items(), strict=True):
        for number, row in enumerate(rows):
            _draw_loss(axis, row, key, f"C{number}")
        axis.set(xlabel=label, ylabel="loss (test set; thin: training batches)", yscale="log")
    by_cost[-1].set_xscale("symlog", linthresh=1e4)  # bytes: some strategies send next to nothing
    by_cost[-1].set_xlim(left=0)
    for number, row in enumerate(rows):
        _draw_staleness(staleness, row, f"C{number}")
    staleness.set(
        xlabel="staleness (updates of others between reading and updating)",
        ylabel="share of updates",
    )
    for axis in axes.flat:
        axis.grid(alpha=0.3)
        if axis.has_data():
            axis.legend(fontsize=8)
    finish(figure, path, title)


_COSTS = {"seconds": "wall time (s)", "seen": "samples", "sent_bytes": "bytes sent by a rank"}


def _draw_loss(axis: Any, row: dict[str, Any], key: str, color: str) -> None:
    steps = [r for r in row["records"] if r["kind"] == "step" and "seconds" in r]
    tests = [r for r in row["records"] if r["kind"] == "evaluation"]
    losses = _running_mean([r["loss"] for r in steps])
    axis.plot([r[key] for r in steps], losses, color=color, alpha=0.35, lw=1)
    axis.plot(
        [r[key] for r in tests],
        [r["loss"] for r in tests],
        "o-",
        color=color,
        ms=4,
        label=row["name"],
    )


def _draw_staleness(axis: Any, row: dict[str, Any], color: str) -> None:
    counts = {int(k): v for k, v in row["report"].get("staleness", {}).items()}
    total = sum(counts.values())
    if total:
        shares = [count / total for count in counts.values()]
        axis.plot(list(counts), shares, "o-", color=color, label=row["name"])


def _running_mean(values: list[float], width: int = 9) -> list[float]:
    parts = [values[max(0, i - width + 1) : i + 1] for i in range(len(values))]
    return [sum(part) / len(part) for part in parts]


def pyplot() -> Any:
    """matplotlib.pyplot, drawing into files.

    Raises:
        PlatformError: matplotlib is missing.
    """
    load_extra("matplotlib", "drawing plots").use("Agg")
    return load_extra("matplotlib.pyplot", "drawing plots")


def check_plot(path: Path) -> None:
    """Refuse a file that no plot can be written to, before any work.

    Raises:
        PlatformError: matplotlib is missing.
        ConfigError: Its suffix is unknown, or its folder does not exist.
    """
    bases = load_extra("matplotlib.backend_bases", "drawing plots")
    kinds = bases.FigureCanvasBase.get_supported_filetypes()
    if path.suffix[1:].lower() not in kinds:
        known = ", ".join(f".{kind}" for kind in sorted(kinds))
        raise ConfigError(
            f"unknown kind of plot {path.suffix!r}",
            where=str(path),
            remedy=f"use one of {known}",
        )
    check_folder(path)


def finish(figure: Any, path: Path, title: str) -> None:
    """Write a figure and close it.

    Raises:
        OSError: The file cannot be written.
    """
    figure.suptitle(title)
    try:
        with write_atomically(path) as partial:
            figure.savefig(partial, dpi=120, format=path.suffix[1:].lower())
    finally:
        pyplot().close(figure)
