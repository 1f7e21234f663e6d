"""Parts of a source by seeded permutations of its sample numbers: training and test data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mpidl.comm.context import Context
from mpidl.data.fields import READ_BYTES, infer_fields
from mpidl.data.formats.source import Source
from mpidl.data.manifest import Arrays, plain_name
from mpidl.errors import DataError

NAMES = {2: ("train", "test"), 3: ("train", "validation", "test")}
Samples = NDArray[np.int64]


@dataclass(frozen=True)
class Split:
    """How to divide a source.

    Attributes:
        fractions: Of the samples, adding up to 1.
        names: Of the parts.
        seed: Of the permutation.
        stratify: Whether each class is divided by these fractions.
    """

    fractions: tuple[float, ...]
    names: tuple[str, ...]
    seed: int = 0
    stratify: bool = False

    @staticmethod
    def parse(fractions: str, names: str | None, seed: int = 0, stratify: bool = False) -> Split:
        """From the command line.

        Args:
            fractions: Such as "0.9,0.1".
            names: Such as "train,test"; None: these, or with "validation" between them.
            seed: Of the permutation.
            stratify: Whether each class is divided by these fractions.

        Raises:
            DataError: They are no such fractions or names.
        """
        try:
            numbers = tuple(float(word) for word in fractions.split(","))
        except ValueError:
            numbers = ()
        if len(numbers) < 2 or not all(0 < number < 1 for number in numbers):
            raise DataError(
                f"{fractions!r} is no list of two or more fractions between 0 and 1",
                where="--split",
                remedy="write it as 0.9,0.1",
            )
        if abs(sum(numbers) - 1) > 1e-6:
            raise DataError(
                f"the fractions {fractions} add up to {sum(numbers):g}, not to 1",
                where="--split",
                remedy="name a part also for samples that nobody needs",
            )
        words = tuple(names.split(",")) if names else NAMES.get(len(numbers), ())
        fit = len(words) == len(set(words)) == len(numbers)
        if not fit or not all(plain_name(word) and word != ".." for word in words):
            raise DataError(
                f"{len(numbers)} parts cannot be named {', '.join(words) or 'by default'}",
                where="--split-names",
                remedy="give a different name for each part, as in train,validation,test",
            )
        if seed < 0:
            raise DataError(f"is {seed}", where="--seed", remedy="choose a seed of at least 0")
        return Split(numbers, words, seed, stratify)


def divide(source: Source, split: Split, context: Context) -> dict[str, Source]:
    """The parts of a source, the same for any number of ranks. Collective.

    Raises:
        DataError: On every rank: a part would be empty, or there are no classes to stratify by.
    """
    classes = _read_classes(source, context) if split.stratify else None
    with context.fail_together("dividing the samples"):
        parts = split_samples(source.samples, split, classes)
        for name, numbers in parts.items():
            if not len(numbers):
                raise DataError(
                    f"the part {name!r} of {source.samples} samples would be empty",
                    where="--split",
                    remedy="choose other fractions, or shard more samples",
                )
        return {name: select(source, numbers) for name, numbers in parts.items()}


def split_samples(samples: int, split: Split, classes: Samples | None) -> dict[str, Samples]:
    """The sample numbers of each part, ascending.

    Args:
        samples: Number of samples.
        split: How to divide them.
        classes: (samples,) the class of each, to stratify by; None: not stratified.
    """
    order = np.random.Generator(np.random.PCG64(split.seed)).permutation(samples)
    if classes is not None:
        order = order[np.argsort(classes[order], kind="stable")]  # class after class
    sizes = [samples] if classes is None else np.unique(classes, return_counts=True)[1].tolist()
    counts = _round(sizes, split.fractions)
    owners = np.repeat(np.tile(np.arange(len(split.names)), len(sizes)), counts.reshape(-1))
    return {name: np.sort(order[owners == part]) for part, name in enumerate(split.names)}


def _round(sizes: Sequence[int], fractions: Sequence[float]) -> NDArray[np.int64]:
    """(classes, parts) numbers of samples: each is its fraction rounded down or up.

    By the largest remainder; what rounding took from a part, or gave it, counts for the classes
    that follow, so that also the sums over classes keep to the fractions.
    """
    owed = np.zeros(len(fractions))
    counts = np.empty((len(sizes), len(fractions)), np.int64)
    for row, size in zip(counts, sizes, strict=True):
        exact = size * np.asarray(fractions) / math.fsum(fractions)
        row[:] = np.floor(exact + 1e-9)
        owed += exact - row
        left = size - int(row.sum())
        rounded = np.where(exact - row > 1e-9, owed, -np.inf)
        largest = np.argsort(-rounded, kind="stable")[:left]
        row[largest] += 1
        owed[largest] -= 1
    return counts


def _read_classes(source: Source, context: Context) -> Samples:
    """(samples,) the class of each sample; every rank reads its share. Collective."""
    with context.fail_together("reading the labels"):
        fields = infer_fields(source)
        labels = [name for name, field in fields.items() if field.role == "label"]
        whole = [
            name
            for name in labels
            if np.dtype(fields[name].dtype).kind in "iu" and math.prod(fields[name].shape) == 1
        ]
        if len(labels) != 1 or not whole:
            found = f"the labels are {', '.join(labels)}" if labels else "there is no label"
            raise DataError(
                f"needs one label with a class for each sample, but {found}",
                where="--stratify",
                remedy="name it with --label, or leave out --stratify",
            )
        size = sum(field.sample_bytes for field in fields.values())
        step = max(1, READ_BYTES // max(1, size))
        start = context.rank * source.samples // context.size
        stop = (context.rank + 1) * source.samples // context.size
        own = [
            source.read(low, min(low + step, stop))[whole[0]].reshape(-1).astype(np.int64)
            for low in range(start, stop, step)
        ]
    everywhere = context.allgather_object(own)
    return np.concatenate([piece for part in everywhere for piece in part])


def select(source: Source, numbers: Samples) -> Source:
    """A source of some of the samples.

    Args:
        source: All samples.
        numbers: Which, ascending.
    """

    def read(start: int, stop: int) -> Arrays:
        wanted = numbers[start:stop]
        if not len(wanted):
            return source.read(0, 0)
        # in pieces of as many samples as are wanted: no more memory, also where they lie far apart
        pieces: list[Arrays] = []
        edges = np.arange(wanted[0], wanted[-1] + 1 + len(wanted), len(wanted))
        for some in np.split(wanted, np.searchsorted(wanted, edges[1:-1])):
            if len(some):
                arrays = source.read(int(some[0]), int(some[-1]) + 1)
                pieces.append({name: array[some - some[0]] for name, array in arrays.items()})
        return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}

    return replace(source, samples=len(numbers), read=read, numbers=numbers)
