"""Language model: the next token of a text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpidl.data.manifest import Arrays, Manifest
from mpidl.errors import ConfigError, DataError
from mpidl.task.base import Scored, Source, Task
from mpidl.task.distill import SoftClasses
from mpidl.task.metrics import Metric, Sums
from mpidl.task.spec import OTHER_DATA, Shape, TargetSpec

BYTES = "bytes"


class TextMetrics(Metric):
    """Perplexity of a token, and bits of a byte where the bytes of the text are known."""

    size = 3

    def __init__(self, vocabulary: int) -> None:
        self.vocabulary = vocabulary

    def add(self, sums: Sums, scored: Scored) -> None:
        known = int((scored.targets >= 0).sum())
        covered = scored.arrays.get(BYTES)
        if covered is None:
            covered = np.array(known if self.vocabulary == 256 else 0)
        losses = scored.result.losses
        sums += float(losses.sum(dtype=np.float64)), known, int(covered.sum())

    def values(self, sums: Sums) -> dict[str, float]:
        nats, tokens, covered = sums
        mean = float(nats / tokens)
        found = {"perplexity": math.exp(mean) if mean < 700 else math.inf}
        if covered:
            found["bits_per_byte"] = float(nats / covered / math.log(2))
        return found


class LanguageModel(Task):
    """The next token: samples are windows of t + 1 tokens, of which each but the first is a target.

    Outputs are logits (n, t, vocabulary).
    """

    losses = ("cross_entropy",)
    best = "loss"
    counts_correct = True
    needs_label = False
    gives_tokens = True
    soft = SoftClasses

    @classmethod
    def describe_targets(cls, options: Any, data: Source) -> TargetSpec:
        where = data.where
        name, field = next(iter(data.features.items()))
        if (
            len(data.features) != 1
            or len(field.shape) != 1
            or np.dtype(field.dtype).kind not in "iu"
        ):
            raise DataError(
                f"a language model takes one field of tokens (t,), whole numbers, but {name!r} is "
                f"{field.dtype} of shape {field.shape}",
                where=where,
                remedy="make such a data set from text files with 'mpidl shard FILE.txt', or name "
                "the field with data.feature",
            )
        if field.shape[0] < 2:
            raise DataError(
                f"windows of {field.shape[0]} token(s) have no next token",
                where=where,
                remedy="shard the text again with a larger --window",
            )
        if not field.classes:
            raise DataError(
                f"the data set does not say how many tokens the vocabulary of {name!r} has",
                where=where,
                remedy="make it with 'mpidl shard FILE.txt', which counts them",
            )
        return TargetSpec((), field.classes)

    def check_targets(self, manifest: Manifest, where: str) -> None:
        (own,) = self.spec.features
        field = manifest.fields[own.name]
        if (field.classes or 0) > self.vocabulary:
            raise DataError(
                f"the model knows {self.vocabulary} tokens, the data set has {field.classes}",
                where=where,
                remedy=OTHER_DATA + "; shard both texts with the same tokenizer",
            )

    @property
    def vocabulary(self) -> int:
        """Number of tokens."""
        return self.spec.target.classes or 0

    @property
    def extra_fields(self) -> list[str]:
        return [BYTES]

    @property
    def input_shape(self) -> Shape:
        return (self.spec.features[0].shape[0] - 1,)

    @property
    def output_sizes(self) -> Sequence[int]:
        return [self.vocabulary]

    def fits(self, output_shape: Shape) -> bool:
        return output_shape == (*self.input_shape, self.vocabulary)

    def refuse_model(self, name: str, output_shape: Shape) -> ConfigError:
        return ConfigError(
            f"{name!r} has outputs of shape {output_shape} for a sample, but a language model "
            f"gives numbers for each of {self.vocabulary} tokens at each of {self.input_shape[0]} "
            "places",
            where="model",
            remedy="choose gpt or lstm",
        )

    def features(self, arrays: Arrays) -> list[NDArray[Any]]:
        return [arrays[self.spec.features[0].name][:, :-1]]

    def targets(self, arrays: Arrays) -> NDArray[Any]:
        return arrays[self.spec.features[0].name][:, 1:].astype(np.int64)

    def make_metrics(self) -> list[Metric]:
        return [TextMetrics(self.vocabulary)]

    def predictions(self, outputs: NDArray[Any]) -> dict[str, NDArray[Any]]:
        exact = outputs.astype(np.float64)
        return {"token": exact.argmax(axis=-1)}
