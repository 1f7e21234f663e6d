"""How a dataset lies in its HDF5 file, and what reading one sample of it costs."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpidl.data.hdf5 import filters
from mpidl.data.writer import CHUNK_BYTES

PAGE = 4096  # bytes; less is never read
BAD_FACTOR = 4  # of the bytes of a sample, beyond which reading one is called slow ...
BAD_BYTES = CHUNK_BYTES  # ... if it is more than this, too
LARGEST_CHUNK = 1 << 30  # bytes; HDF5 takes less than 4 GiB
NAMES = {1: "gzip", 2: "shuffle", 3: "fletcher32", 4: "szip", 5: "nbit", 6: "scaleoffset"}


@dataclass(frozen=True)
class Layout:
    """Where the samples of a dataset lie.

    Attributes:
        shape: (samples, *shape of one sample).
        item: Bytes of an element.
        chunks: Shape of a chunk; None: the dataset is contiguous.
        filters: Names of its filters, such as compression.
    """

    shape: tuple[int, ...]
    item: int
    chunks: tuple[int, ...] | None
    filters: tuple[str, ...]

    @staticmethod
    def of(dataset: Any) -> Layout:
        """The layout of an h5py dataset."""
        names = [NAMES.get(code, name or str(code)) for code, name in filters(dataset).items()]
        words = tuple(name.split()[0].rstrip(";,") for name in names)
        return Layout(tuple(dataset.shape), dataset.dtype.itemsize, dataset.chunks, words)

    @property
    def sample_bytes(self) -> int:
        """Bytes of one sample."""
        return self.item * math.prod(self.shape[1:])

    @property
    def read_bytes(self) -> int:
        """Bytes that are read, and decompressed where they are compressed, for one sample alone.

        Compressed chunks are read as a whole, others from the first byte of the sample to its last,
        in pages.
        """
        if self.chunks is None:
            return self.sample_bytes
        if not self.filters and self.chunks[1:] == self.shape[1:]:
            return self.sample_bytes
        pieces = math.prod(
            -(-size // chunk) for size, chunk in zip(self.shape[1:], self.chunks[1:], strict=True)
        )
        rows = self.chunks[0] if self.filters else 1
        return pieces * max(PAGE, rows * math.prod(self.chunks[1:]) * self.item)

    @property
    def is_bad(self) -> bool:
        """Whether reading one sample costs much more than its bytes."""
        return self.read_bytes > max(BAD_FACTOR * self.sample_bytes, BAD_BYTES)

    def better_chunks(self) -> tuple[int, ...]:
        """Chunks of whole samples, as `mpidl shard` writes them."""
        rows = max(1, min(self.shape[0], CHUNK_BYTES // max(1, self.sample_bytes)))
        sizes = [rows, *self.shape[1:]]
        for axis in range(1, len(sizes)):
            while math.prod(sizes) * self.item > LARGEST_CHUNK and sizes[axis] > 1:
                sizes[axis] = -(-sizes[axis] // 2)
        return tuple(sizes)

    def describe(self) -> str:
        """In words: "chunks 7x4x3, gzip"."""
        where = "contiguous" if self.chunks is None else f"chunks {by(self.chunks)}"
        return ", ".join((where, *self.filters))

    def describe_cost(self) -> str:
        """What reading one sample costs, in words."""
        factor = self.read_bytes / max(1, self.sample_bytes)
        verb = "reads and decompresses" if self.filters else "reads"
        return (
            f"one sample of {self.sample_bytes:,} bytes {verb} {self.read_bytes:,} bytes "
            f"({factor:,.0f} times as many): {self.describe()}"
        )


def by(sizes: tuple[int, ...]) -> str:
    """Sizes as 7x4x3."""
    return "x".join(map(str, sizes))


def repack_command(path: Path, layouts: Mapping[str, Layout]) -> str:
    """The h5repack command that gives badly chunked datasets of a file better chunks.

    Args:
        path: The file.
        layouts: Path of a dataset in the file -> how it lies.
    """
    options = [
        word
        for name, layout in layouts.items()
        if layout.is_bad
        for word in ("-l", f"{name}:CHUNK={by(layout.better_chunks())}")
    ]
    target = path.with_name(f"{path.stem}.repacked{path.suffix}")
    return shlex.join(["h5repack", *options, str(path), str(target)])
