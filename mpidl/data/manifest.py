"""`manifest.json`: what a data set holds, in shards or in place, and what its files look like."""

from __future__ import annotations

import hashlib
import math
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from mpidl.errors import DataError, at_place
from mpidl.files import read_error
from mpidl.security.sealed_file import read_bytes
from mpidl.security.sealing import write_sealed

if TYPE_CHECKING:
    from mpidl.security.sealing_keys import Envelope

NAME = "manifest.json"
FORMAT = "mpidl-shards"
VERSION = 3  # 2: statistics without channels, of features only
MAX_CLASSES = 1 << 20
MAX_CHANNELS = 4096  # of a field whose channels have statistics of their own
Count = Annotated[int, Meta(ge=0, le=1 << 62)]
Deviation = Annotated[float, Meta(ge=0)]
Role = Literal["feature", "label", "other"]
Layout = Literal["shards", "shared", "in-place"]
Arrays = dict[str, NDArray[Any]]  # field -> (n, *shape of one sample)


class Statistics(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Mean and standard deviation of a field, for normalizing inputs and real-valued targets.

    Attributes:
        mean: Of all elements.
        std: Their standard deviation.
        checksum: Of all these numbers, see `with_checksum`.
        channel_means: Of the elements of each channel, which are the last axis; empty for numbers,
            for (h, w), and where there are more than `MAX_CHANNELS`.
        channel_stds: Their standard deviations.
    """

    mean: float
    std: Deviation
    checksum: str
    channel_means: tuple[float, ...] = ()
    channel_stds: tuple[Deviation, ...] = ()

    @staticmethod
    def with_checksum(
        mean: float,
        std: float,
        channel_means: tuple[float, ...] = (),
        channel_stds: tuple[float, ...] = (),
    ) -> Statistics:
        """With the first 16 digits of the SHA-256 of all numbers, little-endian float64."""
        numbers = (mean, std, *channel_means, *channel_stds)
        digest = hashlib.sha256(struct.pack(f"<{len(numbers)}d", *numbers)).hexdigest()
        return Statistics(mean, std, digest[:16], channel_means, channel_stds)

    @property
    def is_finite(self) -> bool:
        """Whether all numbers are."""
        numbers = (self.mean, self.std, *self.channel_means, *self.channel_stds)
        return all(map(math.isfinite, numbers))

    @property
    def is_intact(self) -> bool:
        """Whether the checksum fits."""
        return self == Statistics.with_checksum(
            self.mean, self.std, self.channel_means, self.channel_stds
        )


class Field(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One array of each sample.

    Attributes:
        dtype: Its NumPy name.
        shape: Of one sample.
        role: What training uses it for.
        classes: Labels, or the tokens of a feature, lie in [0, classes).
        class_names: Names of the classes, in the order of their numbers.
        statistics: Of a feature that is no token, or of a label of real numbers.
        units: Of its values, as the source names them.
    """

    dtype: str
    shape: Annotated[tuple[Annotated[int, Meta(ge=1, le=1 << 40)], ...], Meta(max_length=16)]
    role: Role
    classes: Annotated[int, Meta(ge=1, le=MAX_CLASSES)] | None = None
    class_names: tuple[str, ...] | None = None
    statistics: Statistics | None = None
    units: Annotated[str, Meta(max_length=200)] | None = None

    @property
    def sample_bytes(self) -> int:
        """Bytes of one sample."""
        return int(np.dtype(self.dtype).itemsize * np.prod(self.shape, dtype=np.int64))


class Shard(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file of a data set.

    Attributes:
        file: Its name in the folder of the manifest; its absolute path where it is used in place.
        samples: Number of samples taken from it.
        bytes: Size of the file.
        sha256: Of the whole file, as sha256sum prints it; None in place, unless it was asked for.
        mtime_ns: When the file was modified last, in nanoseconds since 1970; in place only.
        first: The first of its rows that is a sample; in place only.
        datasets: Field -> path of its dataset in the file; None: the names of the fields.
    """

    file: str
    samples: Count
    bytes: Count
    sha256: Annotated[str, Meta(min_length=64, max_length=64)] | None = None
    mtime_ns: Count | None = None
    first: Count = 0
    datasets: dict[str, str] | None = None

    def dataset(self, field: str) -> str:
        """The path of a field in the file."""
        return field if self.datasets is None else self.datasets[field]


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The description of a data set.

    Attributes:
        format: `FORMAT`.
        version: `VERSION`.
        layout: "shards" (one file per shard), "shared" (one file that all ranks share) or
            "in-place" (files of others, where they are).
        samples: Number of samples in all shards.
        fields: What each sample has, by name.
        shards: The files, in the order of their samples.
        sampled: Samples that the statistics were estimated from; None: all.
    """

    format: str
    version: int
    layout: Layout
    samples: Count
    fields: dict[str, Field]
    shards: tuple[Shard, ...]
    sampled: Count | None = None

    @property
    def in_place(self) -> bool:
        """Whether its files are those of others, used where they are."""
        return self.layout == "in-place"

    @property
    def sample_bytes(self) -> int:
        """Bytes of one sample over all fields."""
        return sum(field.sample_bytes for field in self.fields.values())

    def field_with_role(
        self, role: Literal["feature", "label"], wanted: str | None, where: str
    ) -> str:
        """The name of the one field with this role.

        Args:
            role: What it is for.
            wanted: The name that the configuration gives, if it does.
            where: The data set, for messages.

        Raises:
            DataError: There is not exactly one such field.
        """
        fitting = [name for name, field in self.fields.items() if field.role == role]
        names = [wanted] if wanted else fitting
        if len(names) == 1 and names[0] in self.fields:
            return names[0]
        known = ", ".join(f"{name} ({field.role})" for name, field in self.fields.items())
        remedy = f'name it in the configuration: data.{role} = "..."'
        if wanted:
            what = f"has no field {wanted!r}: data.{role} must be one of {known}"
        elif names:
            what = f"has several fields that could be the {role}: {', '.join(names)}"
        else:
            what = f"has no field that is a {role}; its fields are {known}"
            if role == "label":
                remedy = (
                    "shard the data again with --label NAME, the field or column that holds "
                    "the classes"
                )
        raise DataError(what, where=where, remedy=remedy)


def new_manifest(layout: Layout, fields: dict[str, Field], shards: tuple[Shard, ...]) -> Manifest:
    """A manifest of the current version; the number of samples is the sum over the shards."""
    return Manifest(FORMAT, VERSION, layout, sum(shard.samples for shard in shards), fields, shards)


def load_manifest(folder: Path | str) -> Manifest:
    """Read and check `folder`/manifest.json.

    Raises:
        UnreadableError: It is out of reach now.
        DataError: It is missing or wrong; the message says what.
    """
    path = Path(folder) / NAME
    try:
        raw = read_bytes(path)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise DataError(
            f"cannot read the manifest: {error.strerror}",
            where=str(path),
            remedy="make a data set with 'mpidl shard', or fix the path",
        ) from error
    except OSError as error:
        raise read_error(error, path) from error
    return parse_manifest(raw, path)


def parse_manifest(raw: bytes, path: Path) -> Manifest:
    """The manifest in the bytes of a file.

    Args:
        raw: Its content.
        path: Its name, for messages.

    Raises:
        DataError: It is wrong; the message says what.
    """
    try:
        head = msgspec.json.decode(raw)
        if not isinstance(head, dict) or head.get("format") != FORMAT:
            raise _bad(path, "it is not a manifest of mpidl")
        if head.get("version") != VERSION:
            raise _bad(
                path, f"it has version {head.get('version')}, this mpidl reads version {VERSION}"
            )
        manifest = msgspec.json.decode(raw, type=Manifest)
    except msgspec.MsgspecError as error:
        raise _bad(path, " in ".join(at_place(error))) from error
    except RecursionError as error:
        raise _bad(path, "it is nested too deeply") from error
    _check(path, manifest)
    return manifest


def plain_name(name: str) -> bool:
    """Whether a field can have this name.

    HDF5 takes others for paths, which can lead into other files.
    """
    return name not in ("", ".") and "/" not in name and "\0" not in name


def _bad(path: Path, what: str) -> DataError:
    remedy = "make the data set again with 'mpidl shard', or 'mpidl index' for files in place"
    return DataError(what, where=str(path), remedy=remedy)


def _check(path: Path, manifest: Manifest) -> None:
    total = sum(shard.samples for shard in manifest.shards)
    if manifest.samples != total:
        raise _bad(path, f"it claims {manifest.samples} samples, but its shards add up to {total}")
    if not manifest.fields or not manifest.shards:
        raise _bad(path, "it has no fields or no shards")
    if len({shard.file for shard in manifest.shards}) != len(manifest.shards):
        raise _bad(path, "it names a shard file twice")
    for shard in manifest.shards:
        if manifest.in_place:
            _check_in_place(path, manifest, shard)
        else:
            _check_shard(path, shard)
    for name, field in manifest.fields.items():
        _check_field(path, name, field)


def _check_shard(path: Path, shard: Shard) -> None:
    if Path(shard.file).name != shard.file or shard.file in ("", ".", ".."):
        raise _bad(path, f"shard file {shard.file!r} is not a plain file name")
    if shard.sha256 is None or shard.first or shard.datasets is not None:
        raise _bad(path, f"shard {shard.file!r} has no SHA-256, or entries of files in place")


def _check_in_place(path: Path, manifest: Manifest, shard: Shard) -> None:
    if not Path(shard.file).is_absolute() or "\0" in shard.file:
        raise _bad(path, f"the path {shard.file!r} of a file in place is not absolute")
    if shard.mtime_ns is None or shard.datasets is None:
        raise _bad(path, f"{shard.file!r} lacks mtime_ns or datasets, which files in place need")
    if set(shard.datasets) != set(manifest.fields):
        raise _bad(path, f"the datasets of {shard.file!r} are not those of the fields")
    for name in shard.datasets.values():
        if not all(plain_name(step) for step in name.strip("/").split("/")):
            raise _bad(path, f"{name!r} is not the path of a dataset")


def _check_field(path: Path, name: str, field: Field) -> None:
    if not plain_name(name):
        raise _bad(path, f"field name {name!r} leads into groups of the file")
    try:
        known = np.dtype(field.dtype).kind in "biuf"
    except (TypeError, ValueError, SyntaxError):
        known = False  # numpy reads "1,2" and "(2" as descriptions of structures
    if not known:
        raise _bad(path, f"field {name!r} has the unknown dtype {field.dtype!r}")
    if field.class_names and len(field.class_names) > (field.classes or 0):
        raise _bad(
            path,
            f"field {name!r} has {len(field.class_names)} class names for {field.classes} classes",
        )
    if field.statistics:
        _check_statistics(path, name, field.shape, field.statistics)


def _check_statistics(
    path: Path, name: str, shape: tuple[int, ...], statistics: Statistics
) -> None:
    if not statistics.is_finite:
        raise _bad(path, f"mean or std of field {name!r} is not finite")
    if not statistics.is_intact:
        raise DataError(
            f"mean {statistics.mean} or std {statistics.std} of field {name!r}, or of its "
            "channels, was changed: their checksum does not fit",
            where=str(path),
            remedy="copy manifest.json again or shard the data again; for another normalization "
            "set data.mean and data.std",
        )
    counts = {len(statistics.channel_means), len(statistics.channel_stds)}
    if counts not in ({0}, set(shape[-1:])):
        raise _bad(path, f"the statistics of field {name!r} are not of its channels, the last axis")


def save_manifest(folder: Path, manifest: Manifest, seal: Envelope | None = None) -> None:
    """Write `folder`/manifest.json, indented for people; or sealed: it tells of the data."""
    text = msgspec.json.format(msgspec.json.encode(manifest), indent=2)
    write_sealed(folder / NAME, text + b"\n", seal)


def describe(manifest: Manifest) -> dict[str, Any]:
    """A short summary, for people and for --json."""
    return {
        "samples": manifest.samples,
        "shards": len(manifest.shards),
        "layout": manifest.layout,
        "fields": {
            name: f"{field.dtype}{list(field.shape)} ({field.role})"
            for name, field in manifest.fields.items()
        },
    }
