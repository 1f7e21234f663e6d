"""Opens any data for looking at it: data sets, HDF5 and NetCDF-4 files, raw data of any format."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mpidl.data.chunks import Layout
from mpidl.data.fields import infer_fields, to_storable
from mpidl.data.formats import open_source
from mpidl.data.formats.source import LABEL_NAMES
from mpidl.data.hdf5 import SIGNATURE, open_file, read_ranges, trusted_dataset
from mpidl.data.in_place import Variable, list_variables
from mpidl.data.look import LARGEST_SAMPLE, Part, Pieces
from mpidl.data.manifest import NAME, Arrays, Field, Role
from mpidl.data.reader import Reader
from mpidl.errors import DataError
from mpidl.files import reading
from mpidl.security.sealed_file import SealedFile, is_sealed

Note = Callable[[str], None]


def open_parts(paths: Sequence[Path], note: Note, **options: Any) -> list[Part]:
    """Open data.

    Args:
        paths: A data set folder, or what `open_source` takes.
        note: Told what is odd.
        options: As of `open_source`.

    Raises:
        DataError: They cannot be read.
        ConfigError: An option is impossible.
    """
    first = paths[0]
    if len(paths) == 1 and (first / NAME).is_file():
        return [_data_set(first)]
    if len(paths) == 1 and "format" not in options and _is_hdf5(first):
        return _hdf5(first, options.get("label") or (), note)
    source = open_source(paths, **options)
    for text in source.notes:
        note(text)

    def read(pieces: Pieces) -> Arrays:
        parts = [source.read(start, stop) for start, stop in pieces]
        return {
            name: to_storable(np.concatenate([np.asarray(part[name]) for part in parts]))
            for name in fields
        }

    fields = infer_fields(source)
    return [Part(source.samples, fields, read)]


def _is_hdf5(path: Path) -> bool:
    """Whether it is a file, sealed or not, that begins as HDF5 does."""
    if not path.is_file():
        return False
    with reading(path), SealedFile(path) if is_sealed(path) else open(path, "rb") as file:
        return file.read(len(SIGNATURE)) == SIGNATURE


def _data_set(folder: Path) -> Part:
    reader = Reader(folder, driver="posix", verify=False)
    manifest = reader.manifest
    first = manifest.shards[0]
    layouts, slow = {}, {}
    with reading(reader.path(0)), open_file(reader.path(0)) as file:
        for name in manifest.fields:
            layout = Layout.of(trusted_dataset(file, first.dataset(name), reader.path(0)))
            layouts[name] = layout.describe()
            if layout.is_bad:
                slow[name] = layout.describe_cost()
    files = {shard.file: shard.samples for shard in manifest.shards}
    return Part(manifest.samples, manifest.fields, reader.read, layouts, slow, files)


def _hdf5(path: Path, labels: Sequence[str], note: Note) -> list[Part]:
    """A part for each length of the datasets in a file."""
    variables, left_out = list_variables(path)
    for name, variable in list(variables.items()):
        if max(variable.layout.sample_bytes, variable.layout.read_bytes) > LARGEST_SAMPLE:
            left_out[name] = f"a sample has {variable.layout.sample_bytes:,} bytes"
            del variables[name]
    reasons = [f"{name}: {why}" for name, why in left_out.items()]
    if not variables:
        shown = "; ".join(reasons[:8]) or "none at all"
        raise DataError(
            f"it has no datasets of numbers that can be read: {shown}",
            where=str(path),
            remedy="see it with h5dump -H",
        )
    for text in reasons:
        note(text)
    lengths = dict.fromkeys(variable.samples for variable in variables.values())
    return [
        _hdf5_part(
            path, {name: var for name, var in variables.items() if var.samples == length}, labels
        )
        for length in lengths
    ]


def _hdf5_part(path: Path, variables: dict[str, Variable], labels: Sequence[str]) -> Part:
    def read(pieces: Pieces) -> Arrays:
        total = sum(stop - start for start, stop in pieces)
        arrays = {}
        with reading(path), open_file(path) as file:
            for name, field in fields.items():
                arrays[name] = np.empty((total, *field.shape), field.dtype)
                read_ranges(trusted_dataset(file, name, path), pieces, arrays[name])
        return arrays

    fields = {
        name: Field(var.dtype, var.layout.shape[1:], _role(name, var, labels))
        for name, var in variables.items()
    }
    layouts = {name: variable.layout for name, variable in variables.items()}
    return Part(
        next(iter(variables.values())).samples,
        fields,
        read,
        {name: layout.describe() for name, layout in layouts.items()},
        {name: layout.describe_cost() for name, layout in layouts.items() if layout.is_bad},
    )


def _role(name: str, variable: Variable, labels: Sequence[str]) -> Role:
    last = name.rpartition("/")[2]
    if name in labels or last in labels or (not labels and last.lower() in LABEL_NAMES):
        return "label"
    looks = not variable.coordinate and (variable.layout.shape[1:] or "float" in variable.dtype)
    return "feature" if looks else "other"
