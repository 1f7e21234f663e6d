"""Makes a smaller model of a trained one, and compares the two."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import msgspec

from mpidl.comm.context import Context
from mpidl.data.reader import Reader
from mpidl.inference.fold import fold
from mpidl.inference.predict import Predictor
from mpidl.inference.quantized import matrices, prune, store
from mpidl.task import Evaluation
from mpidl.train import checkpoint as ckpt
from mpidl.train.build import build_loss
from mpidl.train.evaluate import evaluate

BATCH = 256  # samples of an evaluation
ROUNDS = 9  # of the measurement, each model once in each
ENOUGH = 0.05  # seconds of forward passes in a round


@dataclass(frozen=True)
class Recipe:
    """What is done to a model.

    Attributes:
        mode: See `mpidl.train.checkpoint.Quantized`, as the next.
        storage: Of what is not int8.
        fold: Fold batch norms.
        prune: Share of the elements of matrices.
    """

    mode: Any
    storage: Any
    fold: bool
    prune: float


def quantize(predictor: Predictor, recipe: Recipe, out: Path, context: Context) -> ckpt.Quantized:
    """Write a smaller model. Collective.

    Args:
        predictor: The model; its parameters are changed.
        recipe: What is done.
        out: The file.
        context: The ranks.

    Returns:
        How it is stored.
    """
    model = predictor.model
    folded = bool(recipe.fold and fold(model))
    if recipe.prune:
        prune(model, recipe.prune)
    chosen = {name for _, name in matrices(model)} if recipe.mode != "none" else set()
    names = tuple(name for name in model.parameters.slots if name in chosen)
    about = ckpt.Quantized(recipe.mode, recipe.storage, names, folded, recipe.prune)
    with context.fail_together("quantizing"):
        buffers = store(model, about)
    plain = {"parts": (), "ranks": 0, "shared": {}, "own": {}, "quantized": about}
    ckpt.save_file(
        out,
        msgspec.structs.replace(predictor.meta, **plain),
        buffers,
        context,
        seal_for=predictor.config.security.seal_for,
    )
    return about


def score(predictor: Predictor, folder: str, context: Context) -> Evaluation:
    """Loss and metrics on a data set. Collective."""
    with context.fail_together("opening the data"):
        reader = Reader(folder, driver="posix")
    try:
        with context.fail_together("checking the data"):
            predictor.task.check(reader.manifest, folder)
            reader.select([*predictor.spec.field_names, *predictor.task.extra_fields])
        loss = build_loss(predictor.config.loss, predictor.task, predictor.ops)
        return evaluate(predictor.model, loss, predictor.inputs, reader, context, BATCH)
    finally:
        reader.close()


def measure(
    predictors: Sequence[Predictor], folder: str, batch: int, context: Context
) -> list[float]:
    """Samples a second of forward passes on this rank, medians of rounds that take turns.

    Args:
        predictors: The models.
        folder: The data set whose first samples pass.
        batch: Samples of a pass.
        context: The ranks.
    """
    with context.fail_together("measuring"):
        reader = Reader(folder, driver="posix", fields=predictors[0].spec.field_names)
        count = min(batch, len(reader))
        arrays = reader.read([(0, count)])
        reader.close()
        features = predictors[0].inputs.features(arrays)

        def passes(predictor: Predictor, times: int) -> float:
            start = time.perf_counter()
            for _ in range(times):
                predictor.through.forward(features)
            predictor.ops.synchronize()
            return (time.perf_counter() - start) / times

        first = [min(passes(predictor, 1) for _ in range(2)) for predictor in predictors]
        times = [max(1, math.ceil(ENOUGH / max(seconds, 1e-6))) for seconds in first]
        seconds: list[list[float]] = [[] for _ in predictors]
        for _ in range(ROUNDS):
            for own, predictor, number in zip(seconds, predictors, times, strict=True):
                own.append(passes(predictor, number))
        return [count / median(own) for own in seconds]
