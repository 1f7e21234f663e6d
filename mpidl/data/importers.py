"""Where raw data comes from: IDX, .npy, .npz, CSV, a folder of images, or an HDF5 file, all behind one `Source`."""

from __future__ import annotations

import csv
import gzip
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mpidl.data.hdf5 import open_file, trusted_dataset
from mpidl.errors import DataError

Arrays = dict[str, NDArray[Any]]
Meaning = Literal["feature", "label", "other"]
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".webp"}
LABEL_NAMES = {"label", "labels", "y", "target", "targets", "class", "classes"}
IDX_DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
FORMATS = "IDX or IDX.gz files, .npy, .npz, .csv, a folder of class folders with images, or an HDF5 file"


@dataclass(frozen=True)
class Source:
    """Raw data with random access. read(start, stop) returns an array (stop - start, *shape) for each field."""

    samples: int
    read: Callable[[int, int], Arrays]
    class_names: tuple[str, ...] | None = None


def open_source(paths: Sequence[Path], label: str | None = None) -> Source:
    """The source for the files or the folder given on the command line.

    label: the name of the label field or CSV column. Raises DataError naming the file if it is not in a known format.
    """
    for path in paths:
        if not path.exists():
            raise DataError("the file or folder does not exist", where=str(path), remedy="check the path")
    first = paths[0]
    if first.is_dir():
        return _one(paths, _images)
    suffix = "".join(first.suffixes[-2:]) if first.suffix == ".gz" else first.suffix
    if suffix in (".h5", ".hdf5", ".hdf"):
        return _one(paths, _hdf5)
    if suffix in (".csv", ".csv.gz"):
        return _one(paths, lambda path: _csv(path, label))
    if suffix == ".npz":
        return _one(paths, _npz)
    if suffix == ".npy":
        return _columns(paths, lambda path: np.load(path, mmap_mode="r", allow_pickle=False))
    return _columns(paths, read_idx)


def _one(paths: Sequence[Path], reader: Callable[[Path], Source]) -> Source:
    if len(paths) != 1:
        raise DataError(
            f"expected one input of this kind, got {len(paths)}", where=str(paths[1]), remedy="shard each on its own"
        )
    return reader(paths[0])


def _from_arrays(arrays: Arrays, where: str) -> Source:
    counts = {name: len(array) if array.ndim else -1 for name, array in arrays.items()}
    if not counts or len(set(counts.values())) != 1 or min(counts.values()) < 0:
        raise DataError(f"the arrays have different numbers of samples: {counts}", where=where, remedy="make them equal")
    return Source(next(iter(counts.values())), lambda start, stop: {name: array[start:stop] for name, array in arrays.items()})


def _columns(paths: Sequence[Path], load: Callable[[Path], NDArray[Any]]) -> Source:
    """One array a file; in order: the features, then the labels, then others."""
    names = ["image", "label", *(f"field{index}" for index in range(2, len(paths)))]
    arrays: Arrays = {}
    for name, path in zip(names, paths, strict=False):
        try:
            arrays[name] = load(path)
        except (ValueError, OSError, EOFError) as error:
            raise DataError(f"cannot be read: {error}", where=str(path), remedy=f"give {FORMATS}") from error
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
        raise ValueError(f"the IDX header promises {shape} of {dtype.name}, but {len(body)} bytes follow")
    return np.frombuffer(body, dtype).reshape(shape).astype(dtype.newbyteorder("="), copy=False)


def _npz(path: Path) -> Source:
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (ValueError, OSError, KeyError) as error:
        raise DataError(
            f"cannot be read: {error}", where=str(path), remedy="save it with numpy.savez, without objects"
        ) from error
    return _from_arrays(arrays, str(path))


def _hdf5(path: Path) -> Source:
    file = open_file(path)
    sets = {name: trusted_dataset(file, name, path) for name in file}
    return _from_arrays(sets, str(path))


def _csv(path: Path, label: str | None) -> Source:
    """Numeric columns become one float32 vector "features"; the label column may hold words."""
    with gzip.open(path, "rt", newline="") if path.suffix == ".gz" else open(path, newline="") as file:
        rows = csv.reader(file)
        header = next(rows, [])
        body = [row for row in rows if row]
    name = label or next((column for column in header if column.strip().lower() in LABEL_NAMES), None)
    if name is not None and name not in header:
        raise DataError(f"has no column {name!r}, only {header}", where=str(path), remedy="name one of these with --label")
    place = header.index(name) if name is not None else None
    features = np.empty((len(body), len(header) - (place is not None)), np.float32)
    for number, row in enumerate(body, 2):
        values = [value for column, value in enumerate(row) if column != place]
        try:
            features[number - 2] = values
        except ValueError as error:
            raise DataError(
                f"line {number} is not {features.shape[1]} numbers: {error}",
                where=str(path),
                remedy="correct the line or the header",
            ) from error
    arrays: Arrays = {"features": features}
    if place is None:
        return _from_arrays(arrays, str(path))
    words = [row[place].strip() for row in body]
    if all(word.lstrip("-").isdigit() for word in words):
        arrays["label"] = np.array(words, np.int64)
        return _from_arrays(arrays, str(path))
    classes = sorted(set(words))
    arrays["label"] = np.array([classes.index(word) for word in words], np.int64)
    plain = _from_arrays(arrays, str(path))
    return Source(plain.samples, plain.read, tuple(classes))


def _images(folder: Path) -> Source:
    """A folder of class folders; the classes are their names in alphabetical order. All images must have one size."""
    try:
        from PIL import Image
    except ImportError as error:
        raise DataError("reading images needs Pillow", where=str(folder), remedy="pip install 'mpidl[images]'") from error
    classes = sorted(path.name for path in folder.iterdir() if path.is_dir())
    files = [
        (path, number)
        for number, name in enumerate(classes)
        for path in sorted((folder / name).iterdir())
        if path.suffix.lower() in IMAGE_SUFFIXES
    ]
    if not files:
        raise DataError("holds no class folders with images", where=str(folder), remedy="arrange it as folder/class/image.png")

    def load(path: Path) -> NDArray[Any]:
        try:
            with Image.open(path) as image:
                return np.asarray(image.convert("L" if image.mode in ("1", "L", "I;16", "P") and not image.palette else "RGB"))
        except OSError as error:
            raise DataError(f"cannot be read as an image: {error}", where=str(path), remedy="remove or replace it") from error

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
        return {"image": images, "label": np.array([number for _, number in files[start:stop]], np.int64)}

    return Source(len(files), read, tuple(classes))


def meaning_of(name: str, array: NDArray[Any], label: str | None) -> Meaning:
    """What a field is: the label by its name (or the one the user names), features by their shape or dtype."""
    if name == label or (label is None and name.lower() in LABEL_NAMES):
        return "label"
    return "feature" if array.ndim > 1 or array.dtype.kind == "f" else "other"
