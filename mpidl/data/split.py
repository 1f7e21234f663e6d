"""Divides a source into parts such as training and test data; the same on any number of ranks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from mpidl.data.formats.source import Source, infer_role
from mpidl.data.manifest import Arrays
from mpidl.errors import ConfigError, DataError

READ_BYTES = 32 << 20  # of samples whose labels are read, in memory at a time
Numbers = NDArray[np.int64]


def parse_split(text: str, names: str) -> dict[str, float]:
    """The parts that `--split` and `--split-names` describe: name -> fraction.

    Raises:
        ConfigError: They are no fractions that add up to 1, or not as many names.
    """
    parts = [name.strip() for name in names.split(",")]
    try:
        fractions = [float(word) for word in text.split(",")]
    except ValueError:
        fractions = []
    # "not >" refuses NaN too
    if len(fractions) < 2 or not min(fractions) > 0 or not math.isclose(sum(fractions), 1):
        raise ConfigError(
            f"--split is {text!r}, but must be fractions above 0 that add up to 1",
            where="--split",
            remedy="as in --split 0.9,0.1",
        )
    plain = all(name and name not in (".", "..") and "/" not in name for name in parts)
    if len(set(parts)) != len(fractions) or len(parts) != len(fractions) or not plain:
        raise ConfigError(
            f"--split-names is {names!r}, but must be {len(fractions)} different names of folders",
            where="--split-names",
            remedy="as in --split 0.8,0.1,0.1 --split-names train,validation,test",
        )
    return dict(zip(parts, fractions, strict=True))


def counts(samples: int, fractions: Sequence[float], owed: list[float] | None = None) -> list[int]:
    """Whole numbers in these proportions that add up to `samples`, by the largest remainder.

    Args:
        samples: Their sum.
        fractions: Of each part.
        owed: What rounding took from each part before, and gave it (below 0), which counts here;
            updated. Else all of many small classes would be rounded in favor of the same part.
    """
    # Rounded: 0.29 * 100 is 28.999999999999996
    exact = [round(samples * fraction, 9) for fraction in fractions]
    found = [math.floor(share) for share in exact]
    owed = [0.0] * len(exact) if owed is None else owed
    rounded = [part for part in range(len(exact)) if exact[part] > found[part]]
    for part in rounded:
        owed[part] = round(owed[part] + exact[part] - found[part], 9)
    rounded.sort(key=lambda part: (-owed[part], part))
    for part in rounded[: samples - sum(found)]:
        found[part] += 1
        owed[part] -= 1
    return found


def divide(groups: Sequence[Numbers], fractions: dict[str, float], seed: int) -> dict[str, Numbers]:
    """Divide each group of sample numbers at random in these proportions.

    Args:
        groups: The samples of each class, or all in one group.
        fractions: Of each part.
        seed: Of the permutations.

    Returns:
        The sample numbers of each part, ascending.

    Raises:
        DataError: A part has no sample.
    """
    rng = np.random.default_rng(seed)
    owed = [0.0] * len(fractions)
    found: dict[str, list[Numbers]] = {name: [] for name in fractions}
    for group in groups:
        stops = np.cumsum(counts(len(group), list(fractions.values()), owed))
        for name, part in zip(found, np.split(rng.permutation(group), stops[:-1]), strict=True):
            found[name].append(part)
    parts = {name: np.sort(np.concatenate(pieces)) for name, pieces in found.items()}
    for name, part in parts.items():
        if not len(part):
            raise DataError(
                f"the part {name!r} is {fractions[name]:g} of {sum(map(len, groups))} samples, "
                "which is none",
                where="--split",
                remedy="choose a larger fraction in --split, or give more samples",
            )
    return parts


def read_classes(source: Source, start: int, stop: int) -> Numbers:
    """The classes of samples [start, stop), (stop - start,).

    Raises:
        DataError: The source has not one class for each sample.
    """
    first = source.read(0, min(1, source.samples))
    fitting = [
        name
        for name, array in first.items()
        if source.roles.get(name, infer_role(name, array, source.label)) == "label"
    ]
    if len(fitting) != 1 or first[fitting[0]].dtype.kind not in "biu":
        raise DataError(
            f"cannot be stratified: {', '.join(fitting) or 'no field'} is no single label of "
            "classes",
            where="--stratify",
            remedy="name the class label with --label, or leave out --stratify",
        )
    (name,) = fitting
    if first[name].size > 1:
        raise DataError(
            f"cannot be stratified: {name!r} has several labels for each sample",
            where="--stratify",
            remedy="leave out --stratify",
        )
    step = max(1, READ_BYTES // max(1, sum(array.nbytes for array in first.values())))
    pieces = [
        source.read(low, min(low + step, stop))[name].reshape(-1)
        for low in range(start, stop, step)
    ]
    return np.concatenate([np.empty(0, np.int64), *pieces], dtype=np.int64, casting="unsafe")


def by_class(classes: Numbers) -> list[Numbers]:
    """The numbers of the samples of each class, in the order of the classes."""
    inverse = np.unique(classes, return_inverse=True)[1]
    order = np.argsort(inverse, kind="stable")
    return np.split(order, np.cumsum(np.bincount(inverse))[:-1])


def subset(source: Source, numbers: Numbers) -> Source:
    """The samples `numbers` (ascending) of a source, read in long ranges."""

    def read(start: int, stop: int) -> Arrays:
        wanted = numbers[start:stop]
        if not len(wanted):
            return source.read(0, 0)
        # As many samples at a time as are wanted: no more memory, also where they lie far apart
        edges = np.arange(wanted[0], wanted[-1] + 1, len(wanted))
        pieces: list[Arrays] = []
        for inside in np.split(wanted, np.searchsorted(wanted, edges[1:])):
            if len(inside):
                low = int(inside[0])
                arrays = source.read(low, int(inside[-1]) + 1)
                pieces.append({name: array[inside - low] for name, array in arrays.items()})
        return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}

    return replace(source, samples=len(numbers), read=read, numbers=numbers)
