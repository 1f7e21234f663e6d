"""One file of a data set, open for reading; it notices when the file changes."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mpidl.data.direct import DirectRows, PlainRows
from mpidl.data.hdf5 import (
    open_file,
    read_ranges,
    read_ranges_collectively,
    sealed_of,
    stored_dtype,
    trusted_dataset,
)
from mpidl.data.manifest import Field, Shard
from mpidl.data.native import Indices
from mpidl.data.sealed_rows import SealedRows
from mpidl.errors import DataError
from mpidl.files import read_error, reading
from mpidl.security.sealed_file import content_sha256, content_size

if TYPE_CHECKING:
    from mpi4py import MPI

Ranges = Sequence[tuple[int, int]]
_COPY = "copy the file again from where it was made, or shard the data again"
_INDEX = (
    "let no program write to it while it is used; when it is complete, run 'mpidl index' again "
    "and start the training anew"
)


def remedy_for(shard: Shard) -> str:
    """What to do about a file that is not as it should be."""
    return _COPY if shard.mtime_ns is None else _INDEX


@dataclass(frozen=True)
class Stamp:
    """What tells one state of a file from another without reading it.

    Attributes:
        bytes: Its size.
        mtime_ns: When it was modified last, in nanoseconds since 1970.
    """

    bytes: int
    mtime_ns: int

    @staticmethod
    def of(path: Path) -> Stamp:
        """The stamp of a file as it is now."""
        found = path.stat()
        return Stamp(found.st_size, found.st_mtime_ns)

    def difference(self, now: Stamp) -> str:
        """What has changed since this stamp, in words; empty: nothing."""
        if now.bytes != self.bytes:
            return f"it had {self.bytes:,} bytes, now it has {now.bytes:,}"
        if now.mtime_ns != self.mtime_ns:
            return f"it was modified at {_moment(now)}, before at {_moment(self)}"
        return ""


def _moment(stamp: Stamp) -> str:
    whole, rest = divmod(stamp.mtime_ns, 10**9)
    return f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(whole))}.{rest // 10**6:03d}"


def verify_shard(path: Path, shard: Shard, *, checksum: bool) -> None:
    """Compare a file with its manifest.

    A file in place may have another time where its SHA-256 is checked and fits.

    Args:
        path: The file.
        shard: What the manifest says of it.
        checksum: Whether to compare its SHA-256, if the manifest has one.

    Raises:
        UnreadableError: The file is out of reach now.
        DataError: It is missing, or has another size, time or checksum.
    """
    remedy = remedy_for(shard)
    checksum = checksum and shard.sha256 is not None
    what = "shard" if shard.mtime_ns is None else "file"
    with reading(path, remedy):
        if not path.is_file():
            raise DataError(f"the {what} is missing", where=str(path), remedy=remedy)
        now = Stamp.of(path)
        in_place = shard.mtime_ns is not None
        size = content_size(path, now.bytes) if checksum and not in_place else now.bytes
        found = content_sha256(path) if checksum and size == shard.bytes else ""
    if size != shard.bytes and (checksum or shard.mtime_ns is not None):
        raise DataError(
            f"the {what} has {size} bytes where the manifest says {shard.bytes}",
            where=str(path),
            remedy=remedy,
        )
    if checksum and found != shard.sha256:
        raise DataError(
            f"the {what} is damaged: its SHA-256 is {found[:16]}..., "
            f"the manifest says {(shard.sha256 or '')[:16]}...",
            where=str(path),
            remedy=remedy,
        )
    if shard.mtime_ns is not None and not checksum:
        _check_time(path, shard, now)


def _check_time(path: Path, shard: Shard, now: Stamp) -> None:
    assert shard.mtime_ns is not None
    change = Stamp(shard.bytes, shard.mtime_ns).difference(now)
    if change:
        remedy = remedy_for(shard)
        if shard.sha256 is not None:
            remedy += "; with data.verify = true its SHA-256 decides"
        what = f"has changed since it was indexed: {change}"
        raise DataError(what, where=str(path), remedy=remedy)


def check_layout(path: Path, shard: Shard, fields: Mapping[str, Field]) -> None:
    """Compare the datasets of a file with the manifest.

    Raises:
        DataError: One is missing, cannot be trusted, or has another dtype or shape.
    """
    with reading(path), open_file(path) as file:
        for name, field in fields.items():
            dataset = trusted_dataset(file, shard.dataset(name), path)
            wanted = (shard.samples, *field.shape)
            found = dataset.shape
            if shard.datasets is not None and found:  # a range of its rows
                found = (min(found[0] - shard.first, shard.samples), *found[1:])
            if found != wanted or stored_dtype(dataset) != field.dtype:
                raise DataError(
                    f"field {name!r} is {dataset.dtype}{list(dataset.shape)}, "
                    f"the manifest says {field.dtype}{list(wanted)}",
                    where=str(path),
                    remedy="the manifest belongs to other files: shard or index the data again",
                )


class ShardFile:
    """One file of a data set, open for reading.

    Args:
        path: The file.
        shard: What the manifest says of it.
        fields: The fields to read.
        stamp: Of the file when it was opened before; None: it was not.
        comm: Its ranks open the file together; None: this process alone.
    """

    def __init__(
        self,
        path: Path,
        shard: Shard,
        fields: Mapping[str, Field],
        *,
        stamp: Stamp | None = None,
        comm: MPI.Intracomm | None = None,
    ) -> None:
        self.path = path
        self.shard = shard
        self.fields = fields
        if stamp is None and shard.mtime_ns is not None and shard.sha256 is None:
            verify_shard(path, shard, checksum=False)
        with reading(path):
            self.stamp = stamp or Stamp.of(path)
        self.check_unchanged()
        self._shared = comm is not None
        self._file = open_file(path, comm=comm, chunk_cache=self._shared)
        self._handle: int | None = None
        self._datasets: dict[str, Any] = {}
        self._direct: dict[str, DirectRows | None] = {}

    def read(
        self,
        name: str,
        ranges: Ranges,
        out: NDArray[Any],
        place: Indices | None = None,
        *,
        collective: bool = False,
        threads: int = 1,
    ) -> None:
        """Read samples of one field.

        Args:
            name: The field.
            ranges: (start, stop) of samples of this file.
            out: Takes the samples.
            place: Which row of `out` each of them becomes; None: one after another.
            collective: Whether all ranks of `comm` read together.
            threads: That read at once, where HDF5 is not needed.

        Raises:
            DataError: The file cannot be read, or has changed.
        """
        first = self.shard.first
        rows = [(start + first, stop + first) for start, stop in ranges] if first else ranges
        try:
            direct = self._direct_rows(name)
            if direct is not None:
                direct.read(rows, out, place, threads)
                return
            read = read_ranges_collectively if collective else read_ranges
            found = out if place is None else np.empty((len(place), *out.shape[1:]), out.dtype)
            read(self._dataset(name), rows, found)
            if place is not None:
                out[place] = found
        except (OSError, RuntimeError, KeyError) as error:  # h5py raises all three
            self.check_unchanged()
            raise read_error(error, self.path) from error

    def _dataset(self, name: str) -> Any:
        held = self._datasets.get(name)
        if held is None:
            held = trusted_dataset(self._file, self.shard.dataset(name), self.path)
            # HDF5 cannot close a shared file, at the end of a job that failed, beside open datasets
            if not self._shared:
                self._datasets[name] = held
        return held

    def _direct_rows(self, name: str) -> DirectRows | None:
        """Direct access to a field, where it is not shared and its layout allows it."""
        if self._shared:
            return None
        if name not in self._direct:
            wanted = np.dtype(self.fields[name].dtype)
            self._direct[name] = DirectRows.make(self._dataset(name), self._rows(), wanted)
        return self._direct[name]

    def _rows(self) -> PlainRows | SealedRows:
        """What reads rows at their offsets in the file."""
        sealed = sealed_of(self._file)
        if sealed is not None:
            return SealedRows(sealed)
        if self._handle is None:
            self._handle = os.open(self.path, os.O_RDONLY)
        return PlainRows(self._handle)

    def check_unchanged(self) -> None:
        """Refuse a file that is no longer what it was when it was opened first.

        Raises:
            DataError: Its size or time has changed, or it is gone.
        """
        what = "changed while it was in use"
        try:
            change = self.stamp.difference(Stamp.of(self.path))
        except FileNotFoundError:
            change, what = "it was removed or renamed", "is gone"
        except OSError as error:
            raise read_error(error, self.path) from error
        if change:
            raise DataError(
                f"{what}: {change}", where=str(self.path), remedy=remedy_for(self.shard)
            )

    def close(self) -> None:
        """Close the file; collective with `comm`."""
        self._direct.clear()
        self._datasets.clear()
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None
        self._file.close()
