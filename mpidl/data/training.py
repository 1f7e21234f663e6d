"""The training data of a run: opens its data sets, and makes the order in which they are drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mpidl.comm.context import Context
from mpidl.data.mixture import Mixture
from mpidl.data.reader import Reader
from mpidl.data.sampler import LaneSampler, window_steps
from mpidl.data.strata import Strata, apportion
from mpidl.errors import DataError

Balance = Literal["none", "classes", "sqrt"]
_LABELS_AT_A_TIME = 1 << 20


def open_training(
    folders: Sequence[str], *, context: Context, driver: str, verify: bool
) -> Reader | Mixture:
    """Open one or several data sets for training. Collective.

    Raises:
        DataError: One cannot be used, or they do not agree; on every rank.
    """
    readers = [Reader(folder, context=context, driver=driver, verify=verify) for folder in folders]
    if len(readers) == 1:
        return readers[0]
    with context.fail_together("mixing the data sets"):
        return Mixture(readers)


@dataclass(frozen=True)
class Draw:
    """How an epoch draws from the training data.

    Attributes:
        weights: Share of each data set; None: by its size.
        balance: "classes": each class equally often; "sqrt": by the square root of its samples.
        epoch_samples: Samples of an epoch; None: as many as there are.
        label: The field that holds the classes.
    """

    weights: tuple[float, ...] | None = None
    balance: Balance = "none"
    epoch_samples: int | None = None
    label: str | None = None

    def strata(self, reader: Reader | Mixture) -> Strata:
        """What an epoch draws from.

        Raises:
            DataError: A data set or a class has no sample.
        """
        readers = reader.readers if isinstance(reader, Mixture) else (reader,)
        total = self.epoch_samples or len(reader)
        if self.weights is None:
            if self.balance == "none":
                return Strata(np.array([total]), np.array([len(reader)]))
            parts = [(0, len(reader), total)]
        else:
            shares = apportion(total, self.weights).tolist()
            starts = np.cumsum([0, *(len(part) for part in readers)]).tolist()
            parts = list(zip(starts[:-1], starts[1:], shares, strict=True))
        for part, (start, stop, draws) in zip(readers, parts, strict=False):
            if draws and start == stop:
                raise _empty("the data set has no sample", part, "data.train")
        if self.balance == "none":
            sizes = np.array([stop - start for start, stop, _ in parts])
            return Strata(np.array([draws for _, _, draws in parts]), sizes)
        return self._balanced(reader, parts)

    def _balanced(self, reader: Reader | Mixture, parts: list[tuple[int, int, int]]) -> Strata:
        """A stratum for each class of each part."""
        readers = reader.readers if isinstance(reader, Mixture) else (reader,)
        labels, classes = read_labels(readers, self.label)
        draws, sizes, members = [], [], []
        for number, (start, stop, share) in enumerate(parts):
            own = labels[start:stop]
            counts = np.bincount(own, minlength=classes)
            if share and not counts.all():
                names = readers[number].manifest.fields[str(self.label)].class_names or ()
                missing = int(np.argmin(counts))
                known = f" ({names[missing]})" if missing < len(names) else ""
                what = f"class {missing}{known} of {self.label!r} has no sample"
                raise _empty(what, readers[number], "data.balance")
            power = 0.5 if self.balance == "sqrt" else 0.0
            draws.append(apportion(share, np.maximum(counts, 1) ** power))
            sizes.append(counts)
            members.append(start + np.argsort(own, kind="stable"))
        return Strata(np.concatenate(draws), np.concatenate(sizes), np.concatenate(members))


def _empty(what: str, reader: Reader, setting: str) -> DataError:
    return DataError(
        f"{what}: it cannot be drawn from",
        where=str(reader.folder),
        remedy=f"add samples, or change {setting}",
    )


def read_labels(readers: Sequence[Reader], label: str | None) -> tuple[NDArray[np.int64], int]:
    """All class labels of some data sets, and the number of classes.

    Raises:
        DataError: There is no such field, it does not hold one class a sample, or a label is none
            of the classes.
    """
    found = []
    classes = 0
    for reader in readers:
        where = str(reader.folder)
        field = reader.manifest.fields.get(label or "")
        if field is None or field.classes is None or field.shape:
            raise DataError(
                f"data.balance needs a field with one class a sample, {label!r} is none",
                where=where,
                remedy='set data.label to such a field, or data.balance = "none"',
            )
        classes = field.classes
        with Reader(reader.folder, driver="posix", verify=False, fields=[str(label)]) as own:
            for low in range(0, len(own), _LABELS_AT_A_TIME):
                piece = (low, min(low + _LABELS_AT_A_TIME, len(own)))
                values = own.read([piece])[str(label)].astype(np.int64)
                if ((values < 0) | (values >= classes)).any():
                    row = low + int(np.argmax((values < 0) | (values >= classes)))
                    file, number = own.locate(row)
                    raise DataError(
                        f"sample {number} has {label!r} = {values[row - low]}, but labels must lie "
                        f"in [0, {classes})",
                        where=file,
                        remedy="correct the source data and shard it again",
                    )
                found.append(values)
    return np.concatenate([np.empty(0, np.int64), *found]), classes


def build_sampler(
    reader: Reader | Mixture,
    draw: Draw,
    *,
    global_batch: int,
    ranks: tuple[int, int],
    seed: int,
    shuffle: bool,
    window_bytes: int,
    pairs: bool = False,
) -> LaneSampler:
    """The order of the training data.

    Args:
        reader: The data.
        draw: How an epoch draws from it.
        global_batch: Samples per step over all ranks.
        ranks: This rank, and how many take part.
        seed: Of the order.
        shuffle: False: in the order of the files.
        window_bytes: What all ranks together may hold, about.
        pairs: Whether samples are mixed with partners.

    Raises:
        DataError: There is too little data.
    """
    strata = draw.strata(reader)
    samples, size = strata.epoch_samples, reader.manifest.sample_bytes
    window = None
    if window_steps(len(reader), global_batch, size, window_bytes) is not None:
        window = window_steps(max(samples, len(reader)), global_batch, size, window_bytes)
    return LaneSampler(
        samples,
        global_batch,
        *ranks,
        seed=seed,
        shuffle=shuffle,
        window=window,
        strata=None if strata.is_plain else strata,
        pairs=pairs,
    )
