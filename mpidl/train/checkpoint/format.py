"""The format of a checkpoint: what is in the file, and what its metadata says.

Datasets: "parameters", "state" and "optimizer.NAME" over the whole model; "shared.NAME" and
"own.NAME", the run state (mpidl.optim.RunState), of which "own" holds the arrays of all ranks one
after another; "meta", the metadata as JSON. It is a dataset since it grows with the number of
ranks: an attribute of HDF5 would have to stay below 64 KiB.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from mpidl.errors import CheckpointError
from mpidl.optim import RunState
from mpidl.train.origin import Origin

# 3: inputs do not name the task; 2: parameters have other names; 1: no run state, metadata in an
# attribute
VERSION = 4
BEST = "best.h5"
META = "meta"
SHARED, OWN = "shared.", "own."
Buffers = dict[str, NDArray[Any]]


class Part(msgspec.Struct, frozen=True):
    """The checksum of elements [start, stop) of a dataset."""

    dataset: str
    start: int
    stop: int
    sha256: str


class OwnArrays(msgspec.Struct, frozen=True):
    """One name of `RunState.own`.

    Attributes:
        dtype: Of all ranks.
        shapes: The shape on each rank; None where a rank has no such array.
    """

    dtype: str
    shapes: tuple[tuple[int, ...] | None, ...]

    def span(self, rank: int) -> tuple[int, int]:
        """The elements [start, stop) of the dataset that belong to `rank`."""
        sizes = [0 if shape is None else math.prod(shape) for shape in self.shapes]
        start = sum(sizes[:rank])
        return start, start + sizes[rank]

    @property
    def size(self) -> int:
        """Elements of all ranks."""
        return self.span(len(self.shapes) - 1)[1]


class Quantized(msgspec.Struct, frozen=True):
    """How the parameters of a model for inference are stored (mpidl.inference.quantized).

    Attributes:
        mode: "none": as floating-point numbers; "weight_only": matrices as int8, computed with in
            float32; "dynamic": products in int8 too.
        storage: Of everything that is not int8.
        names: Of the parameters that are int8, in the order of the datasets "int8" and "scales".
        folded: Batch norms were folded into the convolutions before them.
        pruned: Share of the elements of matrices that were set to 0.
    """

    mode: Literal["none", "weight_only", "dynamic"]
    storage: Literal["float32", "float16", "bfloat16"]
    names: tuple[str, ...]
    folded: bool
    pruned: float


class Meta(msgspec.Struct, frozen=True):
    """What a checkpoint says of itself.

    Attributes:
        version: Of the format.
        step: Finished steps.
        epoch: The epoch in which the run goes on.
        epoch_step: The step of that epoch at which it goes on.
        config: The configuration as a tree.
        inputs: The `InputSpec` of the run.
        parameters: Name -> (start in the flat buffer, shape).
        metrics: Of the newest evaluation, and its step.
        best_score: Of all evaluations so far (see `Evaluation.score`); None before the first.
        parts: Checksums that cover all datasets.
        ranks: Number of ranks that wrote it.
        shared: Shapes of the shared arrays in the run state.
        own: The arrays of single ranks in the run state.
        quantized: How its parameters are stored, where it is a model for inference only.
        origins: What the jobs that have trained it were made of (mpidl.train.origin); an entry
            for each change.
        teacher: Digest of the model that the run learns from; None: it has none.
    """

    version: int
    step: int
    epoch: int
    epoch_step: int
    config: dict[str, Any]
    inputs: dict[str, Any]
    parameters: dict[str, tuple[int, list[int]]]
    metrics: dict[str, float]
    best_score: float | None
    parts: tuple[Part, ...] = ()
    ranks: int = 0
    shared: dict[str, tuple[int, ...]] = {}
    own: dict[str, OwnArrays] = {}
    quantized: Quantized | None = None
    origins: tuple[Origin, ...] = ()
    teacher: str | None = None


@dataclass(frozen=True)
class Checkpoint:
    """A loaded and verified checkpoint.

    Attributes:
        path: Of the file.
        meta: Its metadata.
        buffers: Host arrays over the whole model by name.
        state: The run state, without `own` where that is of another number of ranks.
    """

    path: Path
    meta: Meta
    buffers: Buffers
    state: RunState


class DamagedCheckpoint(CheckpointError):
    """The contents of a checkpoint are not what was written: trying again cannot help."""


def compute_digest(array: NDArray[Any]) -> str:
    """The SHA-256 of the bytes of an array, in hexadecimal digits."""
    return hashlib.sha256(np.ascontiguousarray(array).view(np.uint8).data).hexdigest()
