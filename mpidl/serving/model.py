"""A model as a rank serves it: flat inputs in, flat outputs out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpidl.comm import mpi
from mpidl.comm.context import Context
from mpidl.errors import DataError
from mpidl.inference.outputs import Columns, Passed, choose_outputs, compute
from mpidl.inference.predict import Predictor
from mpidl.nn.layers.embedding import Embedding
from mpidl.serving.messages import Load, Loaded
from mpidl.serving.tensors import NAMES, TensorSpec
from mpidl.serving.texts import open_texts


def alone(context: Context) -> Context:
    """A context of this rank only, for what is collective otherwise: ranks open models one by one.

    Cores and threads stay those of the job.
    """
    return replace(context, comm=mpi.load().COMM_SELF, rank=0, size=1, node=0, nodes=1)


class Served:
    """An opened model.

    Args:
        load: What to open.
        context: Of this rank alone.

    Attributes:
        about: Its inputs and outputs.
        texts: What it writes, if it is a model of texts.

    Raises:
        MpidlError: The run cannot be opened, or has no such outputs.
    """

    def __init__(self, load: Load, context: Context) -> None:
        predictor = Predictor(Path(load.path), context, backend=load.backend)
        self.predictor = predictor
        self.outputs = choose_outputs(load.outputs, predictor)
        ids = predictor.inputs.ids
        datatype = "INT64" if ids else "FP32"
        inputs = tuple(
            TensorSpec(field.name, datatype, field.shape) for field in predictor.spec.features
        )
        walk = predictor.model.walk()
        zeros = {spec.name: np.zeros((1, *spec.shape), spec.dtype) for spec in inputs}
        columns = self._columns(zeros)
        values = predictor.model.parameters.values
        self.texts = open_texts(predictor, load.cache_tokens, load.cache)
        vocabulary = next((layer.rows for layer in walk if isinstance(layer, Embedding)), 0)
        self.about = Loaded(
            inputs,
            tuple(
                TensorSpec(name, NAMES[array.dtype], array.shape[1:])
                for name, array in columns.items()
            ),
            predictor.digest,
            str(predictor.path),
            predictor.spec.task,
            vocabulary,
            tuple(predictor.spec.target.class_names or ()),
            int(values.nbytes),
            0 if self.texts is None else self.texts.context,
        )
        self._columns(  # memory of the largest batch is there before the first request
            {n: np.zeros((load.max_batch_size, *a.shape[1:]), a.dtype) for n, a in zeros.items()}
        )

    def _columns(self, arrays: dict[str, NDArray[Any]]) -> Columns:
        return compute(self.outputs, Passed(self.predictor, arrays))

    def run(self, inputs: Sequence[NDArray[Any]]) -> tuple[list[NDArray[Any]], int]:
        """The outputs of a batch, and the nanoseconds of computing.

        Args:
            inputs: (rows, ...) for each of `about.inputs`.

        Raises:
            DataError: The outputs are not what `about` says.
        """
        start = time.perf_counter_ns()
        names = [spec.name for spec in self.about.inputs]
        columns = self._columns(dict(zip(names, inputs, strict=True)))
        found = []
        for spec in self.about.outputs:
            array = np.asarray(columns[spec.name], spec.dtype)
            if array.shape[1:] != spec.shape:
                raise DataError(f"the output {spec.name!r} has the shape {array.shape}")
            found.append(array)
        return found, time.perf_counter_ns() - start
