"""From settings to a data set, or several, and to the order in which its samples are drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpidl.comm import mpi
from mpidl.comm.context import Context
from mpidl.data.direct import Indices
from mpidl.data.joined import JoinedReader
from mpidl.data.manifest import Field
from mpidl.data.mixture import MixedSampler, Stream, apportion
from mpidl.data.reader import Reader
from mpidl.data.sampler import LaneSampler, window_steps
from mpidl.data.validate import check_values
from mpidl.errors import ConfigError, DataError

Labels = NDArray[Any]


@dataclass(frozen=True)
class Drawing:
    """How samples are drawn.

    Attributes:
        global_batch: Samples of a step over all ranks.
        seed: Of the order.
        shuffle: Whether samples come in random order.
        window_bytes: What all ranks together may hold.
        weights: Of the data sets: their shares of the samples drawn; (): as many as each has.
        balance: "none"; "classes": each class as often; "sqrt": by the square roots of the numbers
            of samples.
        epoch_samples: Samples drawn in an epoch; 0: as many as there are.
    """

    global_batch: int
    seed: int = 0
    shuffle: bool = True
    window_bytes: int = 1 << 30
    weights: tuple[float, ...] = ()
    balance: str = "none"
    epoch_samples: int = 0

    @property
    def is_plain(self) -> bool:
        """Whether an epoch is every sample once."""
        return not self.weights and self.balance == "none" and not self.epoch_samples


def open_data(
    folders: Sequence[str], context: Context | None, *, driver: str = "auto", verify: bool = True
) -> Reader:
    """One data set, or several as one. Collective.

    Raises:
        DataError: One cannot be used, or they do not have the same fields; on every rank.
    """
    if len(folders) == 1:
        return Reader(folders[0], context=context, driver=driver, verify=verify)
    return JoinedReader(folders, context=context, driver=driver, verify=verify)


def make_sampler(
    reader: Reader,
    drawing: Drawing,
    context: Context | None = None,
    *,
    label: str = "",
    ranks: int | None = None,
) -> LaneSampler:
    """The order of the samples of `reader`. Collective.

    Args:
        reader: The data.
        drawing: How they are drawn.
        context: The ranks that read it; None: this process alone.
        label: The field with the classes, for `balance`.
        ranks: The first so many ranks divide each batch among them; None: all.

    Raises:
        ConfigError: The settings do not fit each other or the data; on every rank.
        DataError: The same, where another data set would do.
    """
    rank, size = (context.rank, context.size) if context else (0, 1)
    size = ranks or size
    sample_bytes = sum(field.sample_bytes for field in reader.fields.values())
    samples = drawing.epoch_samples or len(reader)
    held = sample_bytes if drawing.is_plain else 2 * sample_bytes  # with those between, see GAP
    window = window_steps(len(reader), drawing.global_batch, held, drawing.window_bytes)
    labels = None if drawing.balance == "none" else read_labels(reader, label, context)
    with context.fail_together("choosing the samples of an epoch") if context else nullcontext():
        if drawing.epoch_samples and samples < drawing.global_batch:
            raise ConfigError(
                f"an epoch of {samples} samples is less than one batch of {drawing.global_batch}",
                where="data.epoch_samples",
                remedy="raise data.epoch_samples, or lower train.global_batch",
            )
        plain = LaneSampler(
            samples,
            drawing.global_batch,
            min(rank, size - 1),
            size,
            drawing.seed,
            drawing.shuffle,
            window,
        )
        if drawing.is_plain:
            return plain
        streams = make_streams(reader, drawing, samples, label, labels)
        return MixedSampler(**vars(plain), streams=streams)


def make_streams(
    reader: Reader, drawing: Drawing, samples: int, label: str, labels: Labels | None
) -> tuple[Stream, ...]:
    """What an epoch of `samples` draws, divided by weights and classes.

    Args:
        reader: The data.
        drawing: The weights, and how classes are balanced.
        samples: Of an epoch.
        label: The field with the classes.
        labels: (samples of the data set,), for `balance`; None without.

    Raises:
        DataError: A class has no sample, or a stream is drawn less than once in an epoch.
    """
    borders = _borders(reader) if drawing.weights else [0, len(reader)]
    weights = drawing.weights or (1.0,)
    found: list[tuple[str, Any, float]] = []
    for number, (low, high) in enumerate(pairwise(borders)):
        name = _name(reader, number) if drawing.weights else ""
        if labels is None:
            found.append((name or "the data", range(low, high), weights[number]))
            continue
        classes = _classes(reader, labels[low:high], label, name)
        sizes = [len(members) for _, members in classes]
        shares = [1.0 if drawing.balance == "classes" else math.sqrt(size) for size in sizes]
        for (known, members), share in zip(classes, shares, strict=True):
            found.append((known, members + low, weights[number] * share / sum(shares)))
    draws = apportion([share for _, _, share in found], samples)
    for (name, members, _), count in zip(found, draws, strict=True):
        if not count or not len(members):
            raise DataError(
                f"{name} is drawn {count} times in an epoch of {samples} samples, and it has "
                f"{len(members)}",
                where="data.weights" if drawing.weights else "data.balance",
                remedy="raise data.epoch_samples or its weight, or leave it out",
            )
    return tuple(
        Stream(name, members, count)
        for (name, members, _), count in zip(found, draws, strict=True)
        if count
    )


def _borders(reader: Reader) -> list[int]:
    return reader.set_starts if isinstance(reader, JoinedReader) else [0, len(reader)]


def _name(reader: Reader, number: int) -> str:
    sets = reader.readers if isinstance(reader, JoinedReader) else [reader]
    return f"the data set {sets[number].folder}"


def _classes(reader: Reader, labels: Labels, label: str, where: str) -> list[tuple[str, Indices]]:
    """The name of each class and its samples."""
    field = reader.manifest.fields[label]
    count = field.classes or 0
    sizes = np.bincount(labels, minlength=count)
    ends = np.cumsum(sizes)
    order = np.argsort(labels, kind="stable")
    found: list[tuple[str, Indices]] = []
    for number, (size, end) in enumerate(zip(sizes.tolist(), ends.tolist(), strict=True)):
        name = f"class {_class_name(field, number)} of {label!r}"
        if not size:
            raise DataError(
                f"{name} has no sample, so that it cannot be balanced with the others",
                where=where.removeprefix("the data set ") or str(reader.folder),
                remedy="add samples of it, shard the data without that class, or set "
                'data.balance = "none"',
            )
        found.append((f"{name}{where and f' in {where}'}", order[end - size : end]))
    return found


def _class_name(field: Field, number: int) -> str:
    names = field.class_names or ()
    return f"{number} ({names[number]!r})" if number < len(names) else str(number)


def read_labels(reader: Reader, label: str, context: Context | None) -> Labels:
    """The class of every sample, in the smallest dtype. Collective: ranks divide the reading.

    Args:
        reader: The data.
        label: The field.
        context: The ranks; None: this process alone.

    Raises:
        DataError: The field has no classes, or cannot be read; on every rank.
    """
    rank, size = (context.rank, context.size) if context else (0, 1)
    borders = [part * len(reader) // size for part in range(size + 1)]
    own = np.empty(0)
    with context.fail_together("reading the labels") if context else nullcontext():
        classes = _check_label(reader, label)
        piece = (borders[rank], borders[rank + 1])
        field = reader.fields[label]
        arrays = {label: np.empty((piece[1] - piece[0], *field.shape), field.dtype)}
        reader.read_into(arrays, [piece])
        check_values(reader, arrays, [piece])
        own = arrays[label].reshape(-1).astype(np.min_scalar_type(classes))
    if context is None or size == 1:
        return own
    MPI = mpi.load()
    every = np.empty(len(reader), own.dtype)
    edges = np.array(borders) * own.itemsize
    receive = [every.view(np.uint8), np.diff(edges), edges[:-1], MPI.BYTE]
    context.comm.Allgatherv([own.view(np.uint8), MPI.BYTE], receive)
    return every


def _check_label(reader: Reader, label: str) -> int:
    field = reader.fields.get(label)
    if field is None or not field.classes or math.prod(field.shape) != 1:
        found = "there is none" if field is None else f"{label!r} is {field.dtype}{field.shape}"
        raise DataError(
            f"data.balance needs a label that is one class for each sample, but {found}",
            where=str(reader.folder),
            remedy='set data.balance = "none", or name such a field in data.label',
        )
    return field.classes
