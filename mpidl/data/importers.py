"""Where raw data comes from: IDX, .npy, .npz, CSV, a folder of images, or an HDF5 file, all behind one `Source`."""

from __future__ import annotations

import gzip
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mpidl.data.hdf5 import open_file, trusted_dataset
from mpidl.data.tables import LABEL_NAMES, read_table
from mpidl.errors import DataError, errno_of, unreadable
from mpidl.files import reading

Arrays = dict[str, NDArray[Any]]
Meaning = Literal["feature", "label", "other"]
Channels = Literal["first", "last"]
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".webp"}
IDX_DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
MALFORMED = (ValueError, OSError, EOFError, KeyError, struct.error, zipfile.BadZipFile, zlib.error)
FORMATS = "IDX or IDX.gz files, .npy, .npz, .csv or .tsv, a folder of class folders with images, or an HDF5 file"


@dataclass(frozen=True)
class Source:
    """Raw data with random access. read(start, stop) returns an array (stop - start, *shape) for each field.

    label: the field that is the label, where that is known; candidates: what could be one, where it is not. notes: what was
    assumed in reading, for people.
    """

    samples: int
    read: Callable[[int, int], Arrays]
    class_names: tuple[str, ...] | None = None
    label: str | None = None
    candidates: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def open_source(
    paths: Sequence[Path],
    label: str | None = None,
    *,
    header: bool | None = None,
    channels: Channels | None = None,
) -> Source:
    """The source for the files or the folder given on the command line.

    label: the name of the label field or CSV column. header: whether the first line of a CSV file names its columns (None:
    find out). channels: where images have theirs; "first" turns (c, h, w) into (h, w, c). Raises DataError naming the file if
    it is not in a known format, has no such label, or images that seem to have their channels first.
    """
    source = _open(paths, label, header)
    where = ", ".join(map(str, paths))
    first = source.read(0, min(1, source.samples))
    if label is not None and source.label is None:
        if label not in first:
            raise DataError(
                f"has no field {label!r}, only {', '.join(sorted(first))}",
                where=where,
                remedy="name one of these with --label",
            )
        source = replace(source, label=label)
    return _channels_last(source, first, channels, where)


def _open(paths: Sequence[Path], label: str | None, header: bool | None) -> Source:
    for path in paths:
        if not path.exists():
            raise DataError(
                "the file or folder does not exist", where=str(path), remedy="check the path"
            )
    first = paths[0]
    if first.is_dir():
        return _one(paths, _images)
    suffix = ("".join(first.suffixes[-2:]) if first.suffix == ".gz" else first.suffix).lower()
    if suffix in (".h5", ".hdf5", ".hdf"):
        return _one(paths, _hdf5)
    if suffix in (".csv", ".csv.gz", ".tsv", ".tsv.gz"):
        return _one(paths, lambda path: _csv(path, label, header))
    if suffix == ".npz":
        return _one(paths, _npz)
    if suffix == ".npy":
        return _columns(paths, lambda path: np.load(path, mmap_mode="r", allow_pickle=False))
    return _columns(paths, read_idx)


def _one(paths: Sequence[Path], reader: Callable[[Path], Source]) -> Source:
    if len(paths) != 1:
        raise DataError(
            f"expected one input of this kind, got {len(paths)}",
            where=str(paths[1]),
            remedy="shard each on its own",
        )
    return reader(paths[0])


def _unusable(error: Exception, path: Path, remedy: str) -> DataError:
    return unreadable(errno_of(error), str(path)) or DataError(
        f"cannot be read: {error}", where=str(path), remedy=remedy
    )


def _channels_last(source: Source, first: Arrays, channels: Channels | None, where: str) -> Source:
    """Images (h, w, c). first: one sample of each field."""
    images = [name for name, array in first.items() if array.ndim == 4]
    if channels is None:
        turned = [name for name in images if _seem_turned(first[name].shape[1:])]
        if turned:
            raise DataError(
                f"{turned[0]!r} has samples of shape {first[turned[0]].shape[1:]}, as images with their channels first; "
                "mpidl takes (height, width, channels)",
                where=where,
                remedy="add --channels-first to turn them, or --channels-last if they are (height, width, channels) already",
            )
    if channels != "first":
        return source
    if not images:
        shapes = {name: array.shape[1:] for name, array in first.items()}
        raise DataError(
            f"has no images (c, h, w) to turn, only {shapes}",
            where=where,
            remedy="leave out --channels-first",
        )

    def read(start: int, stop: int) -> Arrays:
        return {
            name: np.ascontiguousarray(np.moveaxis(array, 1, -1)) if name in images else array
            for name, array in source.read(start, stop).items()
        }

    return replace(source, read=read)


def _seem_turned(shape: tuple[int, ...]) -> bool:
    """Whether an image of 1, 3 or 4 channels seems to have them in front."""
    return shape[0] in (1, 3, 4) and min(shape[1:]) > 4


def _from_arrays(arrays: Arrays, where: str) -> Source:
    counts = {name: len(array) if array.ndim else -1 for name, array in arrays.items()}
    if not counts or len(set(counts.values())) != 1 or min(counts.values()) < 0:
        raise DataError(
            f"the arrays have different numbers of samples: {counts}",
            where=where,
            remedy="make them equal",
        )
    return Source(
        next(iter(counts.values())),
        lambda start, stop: {name: array[start:stop] for name, array in arrays.items()},
    )


def _columns(paths: Sequence[Path], load: Callable[[Path], NDArray[Any]]) -> Source:
    """One array a file; in order: the features, then the labels, then others."""
    names = ["image", "label", *(f"field{index}" for index in range(2, len(paths)))]
    arrays: Arrays = {}
    for name, path in zip(names, paths, strict=False):
        try:
            arrays[name] = load(path)
        except MALFORMED as error:
            raise _unusable(error, path, f"give {FORMATS}") from error
    if arrays["image"].ndim < 3:
        arrays = {"features" if name == "image" else name: array for name, array in arrays.items()}
    return _from_arrays(arrays, ", ".join(map(str, paths)))


def read_idx(path: Path) -> NDArray[Any]:
    """The array in an IDX file (LeCun's MNIST format), gzipped or not, in native byte order."""
    with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as file:
        head = file.read(4)
        if len(head) != 4 or head[:2] != b"\0\0" or head[2] not in IDX_DTYPES:
            raise ValueError(f"not an IDX file (nor any other known format: {FORMATS})")
        shape = struct.unpack(f">{head[3]}I", file.read(4 * head[3]))
        body = file.read()
    dtype = np.dtype(IDX_DTYPES[head[2]])
    if len(body) != dtype.itemsize * int(np.prod(shape, dtype=np.int64)):
        raise ValueError(
            f"the IDX header promises {shape} of {dtype.name}, but {len(body)} bytes follow"
        )
    return np.frombuffer(body, dtype).reshape(shape).astype(dtype.newbyteorder("="), copy=False)


def _npz(path: Path) -> Source:
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except MALFORMED as error:
        raise _unusable(error, path, "save it with numpy.savez, without objects") from error
    return _from_arrays(arrays, str(path))


def _hdf5(path: Path) -> Source:
    with reading(path):
        file = open_file(path)
        sets = {name: trusted_dataset(file, name, path) for name in file}
    return _from_arrays(sets, str(path))


def _csv(path: Path, label: str | None, header: bool | None) -> Source:
    """Numeric columns become one float32 vector "features"; the label column, whatever its name, becomes "label"."""
    table = read_table(path, label, header)
    arrays: Arrays = {"features": table.features}
    if table.label is not None:
        arrays["label"] = table.label
    plain = _from_arrays(arrays, str(path))
    return replace(
        plain,
        class_names=table.class_names,
        label=None if table.label is None else "label",
        candidates=table.candidates,
        notes=table.notes,
    )


def _images(folder: Path) -> Source:
    """A folder of class folders; the classes are their names in alphabetical order. All images must have one size."""
    try:
        from PIL import Image
    except ImportError as error:
        raise DataError(
            "reading images needs Pillow", where=str(folder), remedy="pip install 'mpidl[images]'"
        ) from error
    classes = sorted(path.name for path in folder.iterdir() if path.is_dir())
    files = [
        (path, number)
        for number, name in enumerate(classes)
        for path in sorted((folder / name).iterdir())
        if path.suffix.lower() in IMAGE_SUFFIXES
    ]
    if not files:
        raise DataError(
            "holds no class folders with images",
            where=str(folder),
            remedy="arrange it as folder/class/image.png",
        )

    def load(path: Path) -> NDArray[Any]:
        try:
            with Image.open(path) as image:
                return np.asarray(
                    image.convert(
                        "L"
                        if image.mode in ("1", "L", "I;16", "P") and not image.palette
                        else "RGB"
                    )
                )
        except (
            OSError,
            ValueError,
            SyntaxError,
            Image.DecompressionBombError,
        ) as error:  # Pillow raises all of them
            raise unreadable(errno_of(error), str(path)) or DataError(
                f"cannot be read as an image: {error}",
                where=str(path),
                remedy="remove or replace it",
            ) from error

    shape = load(files[0][0]).shape

    def read(start: int, stop: int) -> Arrays:
        images = np.empty((stop - start, *shape), np.uint8)
        for row, (path, _) in enumerate(files[start:stop]):
            image = load(path)
            if image.shape != shape:
                raise DataError(
                    f"has the shape {image.shape} where the first image has {shape}",
                    where=str(path),
                    remedy="resize the images",
                )
            images[row] = image
        return {
            "image": images,
            "label": np.array([number for _, number in files[start:stop]], np.int64),
        }

    return Source(len(files), read, tuple(classes))


def meaning_of(name: str, array: NDArray[Any], label: str | None) -> Meaning:
    """What a field is: the label by its name (or the one the user names), features by their shape or dtype."""
    if name == label or (label is None and name.lower() in LABEL_NAMES):
        return "label"
    return "feature" if array.ndim > 1 or array.dtype.kind == "f" else "other"
