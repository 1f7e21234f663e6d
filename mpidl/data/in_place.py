"""Finds what can be trained on in HDF5 and NetCDF-4 files of others, for use where they are."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from msgspec.structs import replace

from mpidl.data.chunks import Layout
from mpidl.data.hdf5 import (
    filters,
    h5py,
    kind_of,
    open_file,
    stored_dtype,
    trusted_dataset,
)
from mpidl.data.manifest import Shard, plain_name
from mpidl.errors import DataError, nearest, os_words
from mpidl.files import reading

# Attributes of CF conventions without which numbers of two files cannot be compared
MEANING = ("units", "grid_mapping", "calendar", "positive", "scale_factor", "add_offset")
LARGEST_SAMPLE = 1 << 36  # bytes
MOST_OBJECTS = 10_000  # datasets and groups of a file
# h5py raises all of these; the last two where it meets types that NumPy does not have
DAMAGED = (OSError, RuntimeError, KeyError, TypeError, ValueError)
REPACK = "h5repack -f GZIP=1 IN OUT, or set HDF5_PLUGIN_PATH to the folder of its plugin"


@dataclass(frozen=True)
class Variable:
    """One dataset of a file.

    Attributes:
        dtype: That it is read as.
        layout: Where its samples lie.
        fill: Stands for missing values (the attribute `_FillValue` of NetCDF).
        coordinate: Whether it numbers an axis of others.
        meaning: Attributes that say what its numbers stand for, see `MEANING`.
    """

    dtype: str
    layout: Layout
    fill: float | None = None
    coordinate: bool = False
    meaning: dict[str, float | str] = field(default_factory=dict)

    @property
    def samples(self) -> int:
        """Length of the first axis."""
        return self.layout.shape[0]

    @property
    def kind(self) -> tuple[str, tuple[int, ...]]:
        """What must be equal in all files: dtype, and shape of a sample."""
        return self.dtype, self.layout.shape[1:]

    @property
    def units(self) -> str | None:
        """Of its numbers, where the file says so."""
        return str(self.meaning["units"]) if self.meaning.get("units") else None

    @property
    def packed(self) -> bool:
        """Whether its numbers stand for others."""
        return not {"scale_factor", "add_offset"}.isdisjoint(self.meaning)


@dataclass(frozen=True)
class Found:
    """What one file holds.

    Attributes:
        path: Absolute.
        bytes: Its size.
        mtime_ns: When it was modified last.
        variables: Field -> what it is.
        paths: Field -> path of its dataset in the file.
        left_out: Datasets that are no fields, and why.
    """

    path: Path
    bytes: int
    mtime_ns: int
    variables: dict[str, Variable]
    paths: dict[str, str]
    left_out: dict[str, str]

    @property
    def samples(self) -> int:
        """Samples in the file."""
        return next(iter(self.variables.values())).samples

    def field(self, name: str) -> str:
        """The field that a user names by its dataset's name or path.

        Raises:
            DataError: There is none.
        """
        for key, path in self.paths.items():
            if name.strip("/") in (path, key, path.rpartition("/")[2]):
                return key
        raise DataError(
            f"has no dataset {name!r} that can be a field",
            where=str(self.path),
            remedy=nearest(name, self.paths.values()),
        )

    def only(self, names: Sequence[str]) -> Found:
        """With these fields alone."""
        return dataclasses.replace(
            self,
            variables={name: self.variables[name] for name in names},
            paths={name: self.paths[name] for name in names},
        )

    def shard(self, low: int, high: int) -> Shard:
        """The manifest's entry for its rows from `low` to `high`."""
        shard = Shard(str(self.path), high - low, self.bytes)
        return replace(shard, mtime_ns=self.mtime_ns, first=low, datasets=self.paths)


def examine(path: Path, wanted: Sequence[str]) -> Found:
    """Look into a file without reading its data.

    Args:
        path: The file.
        wanted: Names of datasets, or their paths in the file; empty: all that fit together.

    Raises:
        DataError: It cannot be read, lacks what is wanted, or its datasets do not fit together.
    """
    path = Path(os.path.normpath(path.absolute()))  # links as they are: they may differ on nodes
    if not _writable_in_json(str(path)):
        raise DataError("its name is not UTF-8", where=repr(path), remedy="rename the file")
    with reading(path):
        state = path.stat()
        usable, left_out = list_variables(path)
        chosen = _choose(usable, left_out, wanted, path)
        _check_lengths(chosen, path)
        with open_file(path) as file:
            for name in chosen:
                _check_readable(trusted_dataset(file, name, path), path)
    names = _field_names(chosen)
    return Found(
        path,
        state.st_size,
        state.st_mtime_ns,
        dict(zip(names, chosen.values(), strict=True)),
        dict(zip(names, chosen, strict=True)),
        left_out,
    )


def list_variables(path: Path) -> tuple[dict[str, Variable], dict[str, str]]:
    """The datasets of numbers in a file by path, and why others are none.

    Raises:
        DataError: The file cannot be read.
    """
    with reading(path), open_file(path) as file:
        known = dict(_walk(file, path))
    return (
        {name: found for name, found in known.items() if isinstance(found, Variable)},
        {name: found for name, found in known.items() if isinstance(found, str)},
    )


def _check_lengths(chosen: Mapping[str, Variable], path: Path) -> None:
    """Refuse datasets that do not have one sample for each of another."""
    if not chosen:
        raise DataError(
            "it has no datasets of numbers that could be fields",
            where=str(path),
            remedy="check the path; see what it holds with h5dump -H",
        )
    lengths = {name: variable.samples for name, variable in chosen.items()}
    if len(set(lengths.values())) > 1:
        shown = ", ".join(f"{name} ({count:,})" for name, count in lengths.items())
        raise DataError(
            "its datasets have different lengths along the first axis, that of the samples: "
            f"{shown}",
            where=str(path),
            remedy="name those to use with --feature and --label",
        )


def _writable_in_json(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _walk(top: Any, file: Path) -> Iterator[tuple[str, Variable | str]]:
    """All datasets of a file by path: what each is, or why it is none of numbers.

    Only hard links are followed, and no group twice.
    """
    groups, seen, count = [("", top)], set(), 0
    while groups:
        prefix, group = groups.pop()
        address = h5py.h5o.get_info(group.id).addr
        if address in seen:
            continue
        seen.add(address)
        for given in group:
            name = given if isinstance(given, str) else ""  # h5py gives bytes that are no UTF-8
            path, count = prefix + (name or repr(given)), count + 1
            if count > MOST_OBJECTS:
                raise DataError(
                    f"holds more than {MOST_OBJECTS:,} datasets and groups",
                    where=str(file),
                    remedy="samples lie along the first axis of datasets: join them",
                )
            if not _writable_in_json(path) or not plain_name(name):
                yield repr(path), "its name cannot be used"
            elif not isinstance(group.get(name, getlink=True), h5py.HardLink):
                yield path, "a link to elsewhere"
            elif isinstance(item := group[name], h5py.Group):
                groups.append((f"{path}/", item))
            elif isinstance(item, h5py.Dataset):
                try:
                    yield path, _describe(item)
                except DAMAGED as error:
                    yield path, f"cannot be read: {os_words(error)}"


def _describe(dataset: Any) -> Variable | str:
    """What a dataset is, or why it cannot be a field."""
    if not dataset.shape:
        return "no first axis"
    if kind_of(dataset.id) != "numbers":
        return "it does not hold numbers"
    dtype = stored_dtype(dataset)
    if dataset.dtype.kind not in "biuf" or dataset.dtype.itemsize > 8:
        return f"numbers of the type {dtype}"
    if math.prod(dataset.shape[1:]) == 0 or dataset.ndim > 16:
        return f"its shape is {dataset.shape}"
    if math.prod(dataset.shape[1:]) * dataset.dtype.itemsize > LARGEST_SAMPLE:
        return f"a sample has more than {LARGEST_SAMPLE >> 30} GiB"
    coordinate = dataset.ndim == 1 and bool(h5py.h5ds.is_scale(dataset.id))
    found = {name: _attribute(dataset, name) for name in ("_FillValue", *MEANING)}
    said = {name: value for name, value in found.items() if value is not None}
    fill = said.pop("_FillValue", None)
    return Variable(
        dtype, Layout.of(dataset), fill if isinstance(fill, float) else None, coordinate, said
    )


def _attribute(dataset: Any, name: str) -> float | str | None:
    """An attribute of a dataset if it is one number or a text."""
    if name not in dataset.attrs:
        return None
    attribute = h5py.h5a.open(dataset.id, name.encode())
    kind = kind_of(attribute)
    if kind == "other" or attribute.get_space().get_simple_extent_npoints() != 1:
        return None
    value = dataset.attrs[name]
    if kind == "numbers":
        return float(np.asarray(value).reshape(-1)[0])
    text = value.decode(errors="replace") if isinstance(value, bytes) else str(value)
    return text[:200].encode(errors="replace").decode()


def _choose(
    usable: Mapping[str, Variable], left_out: Mapping[str, str], wanted: Sequence[str], file: Path
) -> dict[str, Variable]:
    """The datasets to use: by their path, or by a last name that only one of them has."""
    chosen = {}
    usual = [name for name, variable in usable.items() if not variable.coordinate]
    for name in wanted or usual:
        path = name.strip("/")
        fitting = [path] if path in usable else [
            other for other in usable if other.rpartition("/")[2] == path
        ]  # fmt: skip
        if len(fitting) > 1:
            raise DataError(
                f"several datasets are named {name!r}: {', '.join(fitting)}",
                where=str(file),
                remedy="name one by its path",
            )
        if not fitting:
            why = f": {left_out[path]}" if path in left_out else ""
            raise DataError(
                f"has no dataset {name!r} that can be a field{why}",
                where=str(file),
                remedy=nearest(name, usable),
            )
        chosen[fitting[0]] = usable[fitting[0]]
    return chosen


def _field_names(paths: Collection[str]) -> list[str]:
    """Names of fields: the last part of each path, or all of it where that is not unique."""
    last = [path.rpartition("/")[2] for path in paths]
    return [
        short if last.count(short) == 1 else path.replace("/", ".")
        for short, path in zip(last, paths, strict=True)
    ]


def _check_readable(dataset: Any, file: Path) -> None:
    """Refuse a dataset whose compression this HDF5 does not know."""
    for code, name in filters(dataset).items():
        if not h5py.h5z.filter_avail(code):
            raise DataError(
                f"{dataset.name!r} is compressed by filter {code} ({name}), which this HDF5 does "
                "not have",
                where=str(file),
                remedy=f"compress it by another one: {REPACK}",
            )


def check_alike(files: Sequence[Found]) -> None:
    """Refuse files whose fields differ, or that are given twice.

    Raises:
        DataError: They do; the message names the file that differs from the first.
    """
    first = files[0]
    seen: set[Path] = set()
    for found in files:
        if found.path in seen:
            raise DataError("is given twice", where=str(found.path), remedy="name each file once")
        seen.add(found.path)
        for name in {**first.variables, **found.variables}:
            ours, other = first.variables.get(name), found.variables.get(name)
            if ours is None or other is None or ours.kind != other.kind:
                words = [
                    "no such field" if var is None else f"{var.dtype}{list(var.kind[1])}"
                    for var in (other, ours)
                ]
                raise DataError(
                    f"{name!r} is {words[0]} here, but {words[1]} in {first.path}",
                    where=str(found.path),
                    remedy="index files of one kind together; name their common fields with "
                    "--feature and --label",
                )
            _check_meaning(name, ours, other, (first.path, found.path))


def _check_meaning(name: str, ours: Variable, other: Variable, paths: tuple[Path, Path]) -> None:
    """Refuse a variable whose numbers stand for other things than those of the first file."""
    for key in MEANING:
        here, there = other.meaning.get(key), ours.meaning.get(key)
        if here != there:
            raise DataError(
                f"{key} of {name!r} is {here!r} here, but {there!r} in {paths[0]}",
                where=str(paths[1]),
                remedy="convert the files to the same units, grid and packing, or index them apart",
            )
