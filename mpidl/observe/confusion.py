"""A picture of a confusion matrix. Needs matplotlib."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mpidl.observe.plot import finish, pyplot

NUMBERED = 20  # classes up to which each cell shows its number
NAMED = 60  # classes up to which each has its name


def plot_confusion(
    counts: NDArray[np.int64], names: Sequence[str] | None, path: Path, title: str
) -> None:
    """Draw how often each class was taken for which; colors are shares of the true class.

    Args:
        counts: (classes, classes), of the true class (row) and of the predicted one.
        names: Of the classes; None: their numbers.
        path: The file; its suffix chooses the format.
        title: Above the plot.

    Raises:
        PlatformError: matplotlib is missing.
        OSError: The file cannot be written.
    """
    classes = len(counts)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = min(max(4.0, 0.62 * classes), 13.0)
    figure, axis = pyplot().subplots(figsize=(side + 1.2, side), layout="constrained")
    image = axis.imshow(100 * shares, cmap="Blues", vmin=0, vmax=100)
    figure.colorbar(image, ax=axis, label="share of the true class (%)", shrink=0.8)
    axis.set(xlabel="predicted class", ylabel="true class")
    if classes <= NAMED:
        labels = [name[:20] for name in names or map(str, range(classes))]
        turned = max(map(len, labels)) > 3
        axis.set_xticks(range(classes), labels, rotation=45 if turned else 0)
        if turned:
            for label in axis.get_xticklabels():
                label.set(horizontalalignment="right", rotation_mode="anchor")
        axis.set_yticks(range(classes), labels)
    for row, column in np.ndindex(counts.shape) if classes <= NUMBERED else ():
        if count := int(counts[row, column]):
            color = "white" if shares[row, column] > 0.55 else "black"
            text = f"{count:,}" if count < 100_000 else f"{count:.2g}"
            axis.text(column, row, text, ha="center", va="center", color=color, fontsize=8)
    finish(figure, path, textwrap.fill(title, int(10 * (side + 1))))
