"""What can be written for samples: a registry, `--output NAME` or `NAME:ARGUMENT`."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mpidl.data.manifest import Arrays
from mpidl.errors import ConfigError
from mpidl.registry import Registry
from mpidl.task.classification import softmax

if TYPE_CHECKING:
    from mpidl.inference.predict import Predictor

Columns = dict[str, NDArray[Any]]
SETTING = "--output"
DEFAULT = "predictions"


class Passed:
    """Samples that have passed through the model; what several outputs need is computed once.

    Args:
        predictor: The model.
        arrays: The fields of the samples, (n, *field shape).
        batch: Samples of a pass; None: all. What follows the passes is computed for all at once:
            a small model is faster than many calls of NumPy.
    """

    def __init__(self, predictor: Predictor, arrays: Arrays, batch: int | None = None) -> None:
        self.predictor = predictor
        self.arrays = arrays
        self._count = len(next(iter(arrays.values())))
        self._batch = batch or self._count

    def batches(self) -> Iterator[tuple[slice, Arrays]]:
        """The samples of each pass: their rows and their fields."""
        for low in range(0, self._count, self._batch):
            rows = slice(low, min(low + self._batch, self._count))
            yield rows, {name: array[rows] for name, array in self.arrays.items()}

    @cached_property
    def outputs(self) -> NDArray[np.float32]:
        """What the model gives, (n, *shape)."""
        found = np.empty((self._count, *self.predictor.shape), np.float32)
        for rows, arrays in self.batches():
            self.predictor.outputs(arrays, found[rows])
        return found

    def activations(self, layer: str) -> NDArray[np.float32]:
        """The output of a layer, (n, ...)."""
        parts = [self.predictor.activations(arrays, layer) for _, arrays in self.batches()]
        return np.concatenate(parts)

    @cached_property
    def predictions(self) -> Columns:
        """What the task makes of it."""
        return self.predictor.task.predictions(self.outputs)


class Output(ABC):
    """One thing that is written for each sample.

    Args:
        name: In the registry.
        argument: What stands behind the colon, or "".
        predictor: The model.

    Raises:
        ConfigError: The model or its task has no such output.
    """

    def __init__(self, name: str, argument: str, predictor: Predictor) -> None:
        self.name = name
        self.argument = argument
        self.predictor = predictor
        self.check()

    def check(self) -> None:
        """Refuse an argument or a task that does not fit."""
        if self.argument:
            raise self.error(f"takes nothing behind a colon, not {self.argument!r}")

    @abstractmethod
    def columns(self, passed: Passed) -> Columns:
        """Arrays (n, ...) by name."""

    def error(self, what: str, remedy: str = "") -> ConfigError:
        """An error that names the output."""
        remedy = remedy or f"leave it out, or choose another of {', '.join(OUTPUTS)}"
        return ConfigError(f"the output {self.name!r} {what}", where=SETTING, remedy=remedy)


class Predictions(Output):
    """All that the task predicts: labels and probabilities, or values in their own units."""

    def columns(self, passed: Passed) -> Columns:
        return passed.predictions


class Column(Output):
    """One of the arrays that the task predicts."""

    def check(self) -> None:
        super().check()
        predictor = self.predictor
        sample = np.zeros((1, *predictor.shape), np.float32)
        known = predictor.task.predictions(sample)
        if self.name not in known:
            raise self.error(
                f"is nothing that the task {predictor.spec.task!r} predicts",
                f"choose one of {', '.join([*known, 'raw'])}",
            )

    def columns(self, passed: Passed) -> Columns:
        return {self.name: passed.predictions[self.name]}


class Raw(Output):
    """What the model gives, before the task turns it into predictions."""

    def columns(self, passed: Passed) -> Columns:
        return {"raw": passed.outputs}


class TopK(Output):
    """The most probable classes, and their probabilities."""

    def check(self) -> None:
        classes = self.predictor.spec.target.classes or 0
        if self.predictor.spec.task != "classification":
            raise self.error("needs a classification, a class for each sample")
        digits = re.fullmatch("[1-9][0-9]{0,8}", self.argument)
        self._count = int(self.argument) if digits else 0
        if not 1 <= self._count <= classes:
            raise self.error(
                f"takes a number of classes, not {self.argument!r}",
                f"write top_k:5, with a number from 1 to {classes}",
            )

    def columns(self, passed: Passed) -> Columns:
        count = self._count
        probability = softmax(passed.outputs)
        order = np.argsort(-probability, axis=-1, kind="stable")[..., :count]
        return {
            "top_label": order.astype(np.int64),
            "top_probability": np.take_along_axis(probability, order, axis=-1),
        }


class Embedding(Output):
    """The output of a named layer."""

    def check(self) -> None:
        model = self.predictor.model
        names = [layer.name for layer in model.layers]
        if self.predictor.through is not model:
            raise self.error("needs a model that a sample passes once, which a rollout is not")
        if self.argument not in names:
            raise self.error(
                f"takes the name of a layer, not {self.argument!r}",
                f"write embedding:{names[-2] if len(names) > 1 else names[0]}; the layers are "
                f"{', '.join(names)}",
            )

    def columns(self, passed: Passed) -> Columns:
        return {f"embedding_{self.argument}": passed.activations(self.argument)}


class LogLikelihood(Output):
    """The logarithm of the probability of each token, given those before it."""

    def check(self) -> None:
        super().check()
        if not self.predictor.task.gives_tokens:
            raise self.error("needs a language model")

    def columns(self, passed: Passed) -> Columns:
        logits = passed.outputs.astype(np.float64)
        targets = self.predictor.task.targets(passed.arrays).reshape(logits.shape[:-1])
        logits -= logits.max(axis=-1, keepdims=True)
        own = np.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
        found = own - np.log(np.exp(logits).sum(axis=-1))
        return {"log_likelihood": found.astype(np.float32)}


OUTPUTS: Registry[type[Output]] = Registry(
    "output",
    SETTING,
    {
        "predictions": "mpidl.inference.outputs:Predictions",
        "label": "mpidl.inference.outputs:Column",
        "probability": "mpidl.inference.outputs:Column",
        "value": "mpidl.inference.outputs:Column",
        "top_k": "mpidl.inference.outputs:TopK",
        "embedding": "mpidl.inference.outputs:Embedding",
        "log_likelihood": "mpidl.inference.outputs:LogLikelihood",
        "raw": "mpidl.inference.outputs:Raw",
    },
)


def choose_outputs(wanted: Sequence[str], predictor: Predictor) -> list[Output]:
    """The outputs that a user names.

    Args:
        wanted: NAME or NAME:ARGUMENT each; none: what the task predicts.
        predictor: The model.

    Raises:
        ConfigError: There is no such output, the model does not have it, or two would write the
            same arrays.
    """
    found: list[Output] = []
    for text in dict.fromkeys(wanted or (DEFAULT,)):
        name, _, argument = text.partition(":")
        OUTPUTS.check(name)
        output = OUTPUTS[name](name, argument, predictor)
        if name == "top_k" and any(other.name == name for other in found):
            raise output.error("is given twice, for the same arrays", "give one number of classes")
        found.append(output)
    return found


def compute(outputs: Sequence[Output], passed: Passed) -> Columns:
    """All columns of a batch."""
    columns: Columns = {}
    for output in outputs:
        columns |= output.columns(passed)
    return columns
