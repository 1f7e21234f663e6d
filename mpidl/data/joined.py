"""Several data sets with the same fields, read as one."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from mpidl.comm.context import Context
from mpidl.data.direct import Indices
from mpidl.data.manifest import NAME, Arrays, Field, Manifest, Statistics, new_manifest
from mpidl.data.reader import Reader
from mpidl.errors import DataError

Pieces = Sequence[tuple[int, int]]
AGREE = ("role", "dtype", "shape", "classes", "class_names")


class JoinedReader(Reader):
    """Data sets one after another. Collective with a context.

    Args:
        folders: Where the manifests are.
        context: The ranks that read them together; None: this process alone.
        driver: As of `Reader`.
        verify: As of `Reader`.

    Raises:
        DataError: A data set cannot be used, or its fields are not those of the first; on every
            rank.
    """

    def __init__(
        self,
        folders: Sequence[Path | str],
        *,
        context: Context | None = None,
        driver: str = "auto",
        verify: bool = True,
    ) -> None:
        self.readers = [
            Reader(folder, context=context, driver=driver, verify=verify) for folder in folders
        ]
        self.folder = self.readers[0].folder
        self.context = context
        if context is None:
            self._join()
            return
        with context.fail_together("joining the data sets"):
            self._join()

    def _join(self) -> None:
        manifests = [reader.manifest for reader in self.readers]
        for reader in self.readers[1:]:
            _check_fields(self.readers[0], reader)
        self.manifest: Manifest = new_manifest(
            "shards",
            {
                name: _joined_field([m.fields[name] for m in manifests], manifests)
                for name in manifests[0].fields
            },
            tuple(shard for manifest in manifests for shard in manifest.shards),
        )
        self.fields = dict(self.manifest.fields)
        self.set_starts = [0, *accumulate(len(reader) for reader in self.readers)]
        drivers = {reader.driver for reader in self.readers}
        self.driver = "mpio-collective" if "mpio-collective" in drivers else max(drivers)

    @property
    def uses_mpi(self) -> bool:
        """See `Reader`."""
        return any(reader.uses_mpi for reader in self.readers)

    def select(self, names: Sequence[str]) -> None:
        """See `Reader`."""
        super().select(names)
        for reader in self.readers:
            reader.select(names)

    def locate(self, sample: int) -> tuple[str, int]:
        """See `Reader`."""
        index = min(bisect_right(self.set_starts, sample) - 1, len(self.readers) - 1)
        return self.readers[index].locate(sample - self.set_starts[index])

    def read_into(
        self,
        arrays: Arrays,
        pieces: Pieces,
        row: int = 0,
        *,
        place: Indices | None = None,
        threads: int = 1,
    ) -> int:
        """See `Reader`; each of the data sets is read once, as reading collectively needs."""
        for reader, start in zip(self.readers, self.set_starts, strict=False):
            stop = start + len(reader)
            own = [
                (max(low, start) - start, min(high, stop) - start)
                for low, high in pieces
                if low < stop and high > start
            ]
            row = reader.read_into(arrays, own, row, place=place, threads=threads)
        return row

    def close(self) -> None:
        """See `Reader`."""
        for reader in self.readers:
            reader.close()


def _check_fields(first: Reader, other: Reader) -> None:
    """Refuse fields that differ from those of the first data set."""
    for name in {**first.manifest.fields, **other.manifest.fields}:
        ours, theirs = first.manifest.fields.get(name), other.manifest.fields.get(name)
        for what in AGREE:
            ones, others = getattr(ours, what, None), getattr(theirs, what, None)
            if ours is None or theirs is None or ones != others:
                said = f"{what.replace('_', ' ')} {others}, but {ones}"
                if ours is None or theirs is None:
                    said = (
                        "no such field, but there is one"
                        if theirs is None
                        else "a field that is not"
                    )
                raise DataError(
                    f"field {name!r}: this data set has {said} in {first.folder}",
                    where=str(other.folder / NAME),
                    remedy="data sets in data.train must have the same fields: shard them in the "
                    "same way, from sources with the same classes",
                )


def _joined_field(fields: list[Field], manifests: list[Manifest]) -> Field:
    """With the statistics of all samples together."""
    found = [field.statistics for field in fields]
    statistics = [one for one in found if one is not None]
    if len(statistics) < len(found):
        return msgspec.structs.replace(fields[0], statistics=None)
    samples = [manifest.samples for manifest in manifests]
    mean, std = _pooled([one.mean for one in statistics], [one.std for one in statistics], samples)
    means, stds = _pooled(
        [one.channel_means for one in statistics],
        [one.channel_stds for one in statistics],
        samples,
    )
    joined = Statistics.with_checksum(
        float(mean), float(std), tuple(means.tolist()), tuple(stds.tolist())
    )
    return msgspec.structs.replace(fields[0], statistics=joined)


def _pooled(means: Any, stds: Any, counts: list[int]) -> tuple[Any, Any]:
    """Mean and standard deviation of the union of sets with these."""
    weights = np.array(counts, np.float64) / sum(counts)
    each = np.array(means, np.float64)
    mean = weights @ each
    variance = weights @ (np.square(np.array(stds, np.float64)) + np.square(each - mean))
    return mean, np.sqrt(variance)
