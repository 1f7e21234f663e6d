"""The picture at the end of a run: loss and accuracy over steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def plot_run(records: list[dict[str, Any]], path: Path, title: str) -> None:
    """Draw training loss and accuracy (from step records) and test loss and accuracy (from evaluations) into a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

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
    figure.suptitle(title)
    figure.savefig(path, dpi=120)
    plt.close(figure)
