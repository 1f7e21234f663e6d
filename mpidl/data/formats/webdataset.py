"""WebDataset: tar archives of samples, the files of one sample with one key."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from mpidl.data.formats.images import IMAGE_SUFFIXES, read_image
from mpidl.data.formats.source import MALFORMED, Importer, Roles, Source, unusable
from mpidl.data.manifest import Arrays
from mpidl.errors import DataError
from mpidl.extras import load_extra
from mpidl.registry import NoOptions

MAX_MEMBER = 1 << 30  # bytes of one file of a sample
_REMEDY = "check the archive: files key.png (or .jpg, .npy) and key.cls (or .json) for each sample"
_DATA = {*IMAGE_SUFFIXES, ".npy"}


class WebDatasetImporter(Importer):
    """Images or arrays, and their classes as numbers; nothing is unpacked to disk."""

    INPUT = "WebDataset archives: key.png, .jpg or .npy beside key.cls or .json with the class"
    SUFFIXES = (".tar",)
    SEVERAL_FILES = True

    @classmethod
    def open(cls, paths: Sequence[Path], roles: Roles, options: NoOptions) -> Source:
        """See `Importer.open`."""
        samples = [sample for path in paths for sample in _index(path)]
        if not samples:
            raise DataError("holds no samples", where=str(paths[0]), remedy=_REMEDY)
        first = _array(samples[0])
        key = roles.label or "label"

        def read(start: int, stop: int) -> Arrays:
            data = np.empty((stop - start, *first.shape), first.dtype)
            labels = np.empty(stop - start, np.int64)
            for row, sample in enumerate(samples[start:stop]):
                array = _array(sample)
                if array.shape != first.shape or array.dtype != first.dtype:
                    raise sample.error(
                        f"is {array.dtype}{list(array.shape)}, the first sample is "
                        f"{first.dtype}{list(first.shape)}",
                        "resize the images, or convert the arrays",
                    )
                data[row], labels[row] = array, _class(sample, key)
            return {"image" if first.ndim > 1 else "features": data, "label": labels}

        keys = [sample.key for sample in samples]
        return Source(len(samples), read, label="label", keys=keys)


@dataclass(frozen=True)
class _Member:
    """Where a file lies in its archive."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True)
class _Sample:
    """The two files of a sample.

    Attributes:
        path: Of the archive.
        key: Name of the files without their suffixes, with the folder.
        data: Image or array.
        label: Its class.
    """

    path: Path
    key: str
    data: _Member
    label: _Member

    def error(self, what: str, remedy: str = _REMEDY) -> DataError:
        """An error about this sample."""
        return DataError(f"member {self.data.name!r} {what}", where=str(self.path), remedy=remedy)

    def read(self, member: _Member) -> bytes:
        """The bytes of a file."""
        try:
            with self.path.open("rb") as file:
                file.seek(member.offset)
                raw = file.read(member.size)
        except OSError as error:
            raise unusable(error, self.path, _REMEDY) from error
        if len(raw) != member.size:
            raise self.error("is truncated")
        return raw


def _index(path: Path) -> list[_Sample]:
    """The samples of an archive in its order; only headers are read."""
    found: dict[str, dict[str, _Member]] = {}
    try:
        with tarfile.open(path, "r:") as archive:
            for info in archive:
                if info.isdir():
                    continue
                if not info.isreg() or info.issparse():
                    raise ValueError(f"member {info.name!r} is a link or no regular file")
                if info.size > MAX_MEMBER or info.offset_data + info.size > path.stat().st_size:
                    raise ValueError(f"member {info.name!r} claims {info.size:,} bytes")
                folder, _, name = info.name.rpartition("/")
                stem, _, suffix = name.partition(".")
                files = found.setdefault(f"{folder}/{stem}", {})
                kind = "data" if f".{suffix}".lower() in _DATA else f".{suffix}".lower()
                if kind in files:
                    raise ValueError(f"member {info.name!r} is the second of its sample")
                files[kind] = _Member(info.name, info.offset_data, info.size)
    except (*MALFORMED, tarfile.TarError) as error:
        raise unusable(error, path, _REMEDY) from error
    return [_sample(path, key, files) for key, files in found.items()]


def _sample(path: Path, key: str, files: dict[str, _Member]) -> _Sample:
    labels = [files[suffix] for suffix in (".cls", ".json") if suffix in files]
    if "data" not in files or not labels:
        missing = "class (.cls or .json)" if "data" in files else "image or array"
        raise DataError(f"sample {key!r} has no {missing}", where=str(path), remedy=_REMEDY)
    return _Sample(path, key.lstrip("/"), files["data"], labels[0])


def _array(sample: _Sample) -> NDArray[Any]:
    raw = io.BytesIO(sample.read(sample.data))
    if not sample.data.name.lower().endswith(".npy"):
        load_extra("PIL.Image", "reading images")
        return read_image(sample.path / sample.data.name, raw)
    try:
        array: NDArray[Any] = np.load(raw, allow_pickle=False)
    except MALFORMED as error:
        raise sample.error(f"cannot be read: {error}") from error
    return array


def _class(sample: _Sample, key: str) -> int:
    """The number in a .cls file, or under `key` (else "cls") in a JSON object."""
    raw = sample.read(sample.label)
    try:
        if sample.label.name.lower().endswith(".cls"):
            return int(raw.decode("ascii"))
        held = msgspec.json.decode(raw)
        value = held.get(key, held.get("cls")) if isinstance(held, dict) else held
        if type(value) is int and abs(value) < 1 << 62:
            return value
    except (ValueError, msgspec.DecodeError, RecursionError):
        pass
    raise sample.error(f"has no whole number as its class in {sample.label.name!r}")
