"""Several data sets read as one: samples are numbered through, one data set after another."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from types import TracebackType

import numpy as np

from mpidl.data.manifest import Arrays, Field, Manifest, Statistics, new_manifest
from mpidl.data.reader import Reader
from mpidl.errors import DataError


class Mixture:
    """Readers of several data sets, with the interface of one `Reader`.

    Args:
        readers: Open, at least one; closed with this.

    Attributes:
        manifest: Of all together: pooled statistics, all shards.

    Raises:
        DataError: Their fields do not agree.
    """

    def __init__(self, readers: Sequence[Reader]) -> None:
        self.readers = tuple(readers)
        self.starts = [0, *accumulate(len(reader) for reader in readers)]
        for reader in readers[1:]:
            _check_agree(readers[0], reader)
        manifests = [reader.manifest for reader in readers]
        self.manifest: Manifest = new_manifest(
            "shards",
            {name: _pooled(name, manifests) for name in manifests[0].fields},
            tuple(shard for manifest in manifests for shard in manifest.shards),
        )
        self.fields: dict[str, Field] = {
            name: self.manifest.fields[name] for name in readers[0].fields
        }
        self.driver = next((r.driver for r in readers if r.uses_mpi), readers[0].driver)

    def __len__(self) -> int:
        """Samples in all data sets."""
        return self.starts[-1]

    @property
    def uses_mpi(self) -> bool:
        """See `Reader.uses_mpi`."""
        return any(reader.uses_mpi for reader in self.readers)

    def select(self, names: Sequence[str]) -> None:
        """See `Reader.select`."""
        for reader in self.readers:
            reader.select(names)
        self.fields = {name: field for name, field in self.fields.items() if name in names}

    def locate(self, sample: int) -> tuple[str, int]:
        """See `Reader.locate`."""
        index = min(bisect_right(self.starts, sample) - 1, len(self.readers) - 1)
        return self.readers[index].locate(sample - self.starts[index])

    def read(self, pieces: Sequence[tuple[int, int]], memory: Arrays | None = None) -> Arrays:
        """See `Reader.read`; collective with the driver "mpio-collective"."""
        found = self.readers[0].allocate(sum(stop - start for start, stop in pieces), memory)
        row = 0
        for reader, start in zip(self.readers, self.starts, strict=False):
            own = [
                (max(low - start, 0), min(high - start, len(reader)))
                for low, high in pieces
                if low < start + len(reader) and high > start
            ]
            count = sum(high - low for low, high in own)
            part = {name: array[row : row + count] for name, array in found.items()}
            reader.read_into(own, part)
            row += count
        return found

    def check_unchanged(self) -> None:
        """See `Reader.check_unchanged`."""
        for reader in self.readers:
            reader.check_unchanged()

    def close(self) -> None:
        """Close all; collective if one uses mpio."""
        for reader in self.readers:
            reader.close()

    def __enter__(self) -> Mixture:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for reader in self.readers:
            reader.__exit__(kind, error, trace)


def _check_agree(first: Reader, other: Reader) -> None:
    """Refuse a data set whose samples differ in kind from those of the first."""
    ours, theirs = first.manifest.fields, other.manifest.fields
    for name in [*ours, *(name for name in theirs if name not in ours)]:
        if name not in ours or name not in theirs:
            lacking, having = (other, first) if name in ours else (first, other)
            what = f"has no field {name!r}, which {having.folder} has"
            raise _disagree(lacking, what)
        for attribute in ("dtype", "shape", "role", "classes", "class_names"):
            one, two = getattr(ours[name], attribute), getattr(theirs[name], attribute)
            if one != two:
                what = f"field {name!r} has {attribute} {two} here, but {one} in {first.folder}"
                raise _disagree(other, what)


def _disagree(reader: Reader, what: str) -> DataError:
    return DataError(
        what,
        where=str(reader.folder / "manifest.json"),
        remedy="shard the data sets in the same way, or take it out of data.train",
    )


def _pooled(name: str, manifests: Sequence[Manifest]) -> Field:
    """A field of all data sets together, with mean and deviation over all elements."""
    field = manifests[0].fields[name]
    known = [manifest.fields[name].statistics for manifest in manifests]
    statistics = [s for s in known if s is not None]
    total = sum(manifest.samples for manifest in manifests)
    if len(statistics) < len(known) or not total:
        pooled = None
    else:
        shares = np.array([manifest.samples / total for manifest in manifests])
        # (data sets, 1 + channels): of all elements, and of each channel
        means = np.array([(s.mean, *s.channel_means) for s in statistics])
        stds = np.array([(s.std, *s.channel_stds) for s in statistics])
        mean = shares @ means
        std = np.sqrt(shares @ (stds**2 + (means - mean) ** 2))
        pooled = Statistics.with_checksum(
            float(mean[0]), float(std[0]), tuple(mean[1:].tolist()), tuple(std[1:].tolist())
        )
    return Field(field.dtype, field.shape, field.role, field.classes, field.class_names, pooled)
