"""Metrics as sums over samples: exact for any number of ranks and any cut into batches.

A metric adds float64 sums of each batch; the sums of all ranks are added, and the values computed
from the totals. No mean of means is ever taken.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from mpidl.task.base import Scored

Sums = NDArray[np.float64]
LISTED = 32  # channels with metrics of their own
SHARES = {"accuracy", "top_k", "pixel_accuracy", "mean_iou", "exact_match"}  # shown in percent


@dataclass(frozen=True)
class Evaluation:
    """Means over a data set.

    Attributes:
        loss: Mean loss of the samples.
        samples: Their number.
        metrics: Those of the task, by name.
        score: What the best checkpoint has most of.
        details: What is no single number, such as a confusion matrix.
    """

    loss: float
    samples: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    score: float = float("nan")
    details: Mapping[str, Any] = field(default_factory=dict)

    def describe(self) -> str:
        """In words: "accuracy 91.80 %, loss 0.2310"."""
        return describe_metrics(self.loss, self.metrics)

    def record(self) -> dict[str, Any]:
        """Plain values for metrics.jsonl and --json."""
        known = {name: value for name, value in self.metrics.items() if math.isfinite(value)}
        return {"loss": self.loss, **known, "samples": self.samples}


def describe_metrics(loss: float, metrics: Mapping[str, float]) -> str:
    """Metrics, if there are any, and the loss in words; a metric of each channel is left out."""
    shown = [
        f"{name.replace('_', ' ')} {format_metric(name, value)}"
        for name, value in metrics.items()
        if "[" not in name
    ]
    return ", ".join([*shown, f"loss {loss:.4f}"])


def format_metric(name: str, value: float) -> str:
    """A value with its unit: shares in percent."""
    return f"{100 * value:.2f} %" if is_share(name) else f"{value:.4g}"


def is_share(name: str) -> bool:
    """Whether a metric is shown in percent."""
    return name in SHARES or name.startswith("top_")


class Metric(ABC):
    """Values from sums over samples.

    Attributes:
        size: Number of sums.
    """

    size: int

    @abstractmethod
    def add(self, sums: Sums, scored: Scored) -> None:
        """Add a batch.

        Args:
            sums: (size,), changed in place.
            scored: The batch.
        """

    @abstractmethod
    def values(self, sums: Sums) -> dict[str, float]:
        """The metrics, from the sums over all batches of all ranks."""

    def details(self, sums: Sums) -> dict[str, Any]:
        """What is no single number; plain values."""
        return {}


def ratio(numerator: Any, denominator: Any) -> Any:
    """Elementwise quotients, 0 where the denominator is 0."""
    numerator, denominator = np.asarray(numerator, float), np.asarray(denominator, float)
    safe = np.where(denominator == 0, 1.0, denominator)
    return np.where(denominator == 0, 0.0, numerator / safe)


class Accuracy(Metric):
    """Share of correct samples; a sample with several positions counts as the correct share."""

    size = 2

    def add(self, sums: Sums, scored: Scored) -> None:
        sums += scored.result.correct, scored.count

    def values(self, sums: Sums) -> dict[str, float]:
        return {"accuracy": float(sums[0] / sums[1])}


class TopK(Metric):
    """Share of samples whose class is among the k with the largest outputs."""

    size = 2

    def __init__(self, k: int) -> None:
        self.k = k

    def add(self, sums: Sums, scored: Scored) -> None:
        targets = scored.targets.reshape(-1)
        own = np.take_along_axis(scored.outputs, targets[:, None], axis=1)
        sums += float(((scored.outputs > own).sum(axis=1) < self.k).sum()), len(targets)

    def values(self, sums: Sums) -> dict[str, float]:
        return {f"top_{self.k}": float(sums[0] / sums[1])}


class ConfusionMatrix(Metric):
    """Counts of (true class, predicted class), and what follows from them.

    Args:
        classes: Number of classes.
        regions: Report intersection over union (Jaccard index) of regions, else F1.
    """

    def __init__(self, classes: int, *, regions: bool = False) -> None:
        self.classes = classes
        self.regions = regions
        self.size = classes * classes

    def add(self, sums: Sums, scored: Scored) -> None:
        true = scored.targets.reshape(-1)
        predicted = scored.outputs.argmax(axis=-1).reshape(-1)
        known = true >= 0
        pairs = true[known] * self.classes + predicted[known]
        sums += np.bincount(pairs, minlength=self.size)

    def values(self, sums: Sums) -> dict[str, float]:
        counts = sums.reshape(self.classes, self.classes)
        hits, true, predicted = counts.diagonal(), counts.sum(axis=1), counts.sum(axis=0)
        present = true + predicted > 0
        if self.regions:
            overlap = ratio(hits, true + predicted - hits)
            return {
                "mean_iou": float(overlap[present].mean()),
                "pixel_accuracy": float(ratio(hits.sum(), counts.sum())),
            }
        return {"macro_f1": float(ratio(2 * hits, true + predicted)[present].mean())}

    def details(self, sums: Sums) -> dict[str, Any]:
        counts = sums.reshape(self.classes, self.classes)
        hits, true, predicted = counts.diagonal(), counts.sum(axis=1), counts.sum(axis=0)
        found: dict[str, Any] = {
            "confusion_matrix": counts.astype(np.int64).tolist(),
            "recall": ratio(hits, true).tolist(),
            "precision": ratio(hits, predicted).tolist(),
        }
        if self.regions:
            found["iou"] = ratio(hits, true + predicted - hits).tolist()
        return found


class MultilabelF1(Metric):
    """F1 of several binary labels: micro (all together), macro (mean over labels), exact match.

    Args:
        labels: Number of labels.
        threshold: Of the logits, from which a label counts as predicted.
    """

    def __init__(self, labels: int, threshold: float) -> None:
        self.labels = labels
        self.threshold = threshold
        self.size = 3 * labels + 2

    def add(self, sums: Sums, scored: Scored) -> None:
        predicted = scored.outputs.reshape(-1, self.labels) > self.threshold
        true = scored.targets.reshape(-1, self.labels) > 0.5
        counts = sums[:-2].reshape(3, self.labels)
        counts[0] += (predicted & true).sum(axis=0)
        counts[1] += predicted.sum(axis=0)
        counts[2] += true.sum(axis=0)
        sums[-2] += (predicted == true).all(axis=1).sum()
        sums[-1] += len(true)

    def values(self, sums: Sums) -> dict[str, float]:
        both, predicted, true = sums[:-2].reshape(3, self.labels)
        return {
            "macro_f1": float(ratio(2 * both, predicted + true).mean()),
            "micro_f1": float(ratio(2 * both.sum(), predicted.sum() + true.sum())),
            "exact_match": float(sums[-2] / sums[-1]),
        }


class RegressionErrors(Metric):
    """RMSE, MAE, relative L2 error and R2, in the units of the targets, also of each channel.

    Sums are taken about a constant near the mean of the targets, so that R2 does not cancel.

    Args:
        channels: Of the targets.
        center: (channels,) the constant.
        names: Of the channels, for reports.
    """

    def __init__(self, channels: int, center: NDArray[np.float64], names: list[str]) -> None:
        self.channels = channels
        self.center = center
        self.names = names
        # of each channel: squared and absolute errors, targets, squares of targets, count
        self.size = 5 * channels + 2

    def add(self, sums: Sums, scored: Scored) -> None:
        true = scored.targets.reshape(scored.count, -1, self.channels)
        error = scored.outputs.reshape(true.shape) - true
        shifted = true - self.center
        parts = sums[:-2].reshape(5, self.channels)
        parts[0] += (error * error).sum(axis=(0, 1))
        parts[1] += np.abs(error).sum(axis=(0, 1))
        parts[2] += shifted.sum(axis=(0, 1))
        parts[3] += (shifted * shifted).sum(axis=(0, 1))
        parts[4] += error.shape[0] * error.shape[1]
        norms = np.sqrt((true * true).sum(axis=(1, 2)))
        sums[-2] += ratio(np.sqrt((error * error).sum(axis=(1, 2))), norms).sum()
        sums[-1] += scored.count

    def values(self, sums: Sums) -> dict[str, float]:
        squares, absolute, first, second, count = sums[:-2].reshape(5, self.channels)
        spread = second - first * first / count
        r2 = np.where(spread > 0, 1 - ratio(squares, spread), np.nan)
        found = {
            "rmse": float(np.sqrt(squares.sum() / count.sum())),
            "mae": float(absolute.sum() / count.sum()),
            "relative_l2": float(sums[-2] / sums[-1]),
            "r2": float(r2.mean()),
        }
        if 1 < self.channels <= LISTED:
            for name, error, own in zip(self.names, squares / count, r2, strict=True):
                found |= {f"rmse[{name}]": float(np.sqrt(error)), f"r2[{name}]": float(own)}
        return found
