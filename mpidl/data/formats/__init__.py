"""Formats of raw data, one file each, and `open_source`, which reads any of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mpidl.data.formats.channels import Channels, channels_last
from mpidl.data.formats.source import Importer, Roles, Source, infer_role
from mpidl.data.manifest import Arrays, Role
from mpidl.errors import DataError
from mpidl.options import Place, Section
from mpidl.registry import Registry

# In this order: the first that accepts a path reads it, and IDX accepts files without a suffix.
IMPORTERS: Registry[type[Importer]] = Registry(
    "format",
    "--format",
    {
        "csv": "mpidl.data.formats.csv:CsvImporter",
        "npz": "mpidl.data.formats.numpy_arrays:NpzImporter",
        "npy": "mpidl.data.formats.numpy_arrays:NpyImporter",
        "hdf5": "mpidl.data.formats.hdf5:Hdf5Importer",
        "parquet": "mpidl.data.formats.parquet:ParquetImporter",
        "netcdf": "mpidl.data.formats.netcdf:NetcdfImporter",
        "zarr": "mpidl.data.formats.zarr:ZarrImporter",
        "webdataset": "mpidl.data.formats.webdataset:WebDatasetImporter",
        "images": "mpidl.data.formats.images:ImagesImporter",
        "text": "mpidl.data.formats.text:TextImporter",
        "idx": "mpidl.data.formats.idx:IdxImporter",
    },
)


def open_source(
    paths: Sequence[Path],
    label: str | Sequence[str] | None = None,
    *,
    features: Sequence[str] = (),
    format: str | None = None,
    channels: Channels | None = None,
    real_labels: bool = False,
    **options: Any,
) -> Source:
    """The source for raw files or a folder.

    Args:
        paths: As on the command line.
        label: Names of label fields, or columns of a table, where the user gives some.
        features: Names of features, where the user gives some; other fields are none.
        format: A name in `IMPORTERS`; None: the one that accepts the first path.
        channels: Where images have theirs; "first" turns (c, h, w) into (h, w, c).
        real_labels: Whole numbers in labels are amounts, for a regression, and not classes.
        options: Of the format, see its `Options`.

    Raises:
        DataError: A file is not in that format, has no such label, or holds images that seem to
            have their channels first; the message names it.
        ConfigError: There is no such format, or an option has an impossible value.
    """
    for path in paths:
        if not path.exists():
            raise DataError(
                "the file or folder does not exist", where=str(path), remedy="check the path"
            )
    name = format or detect_format(paths[0])
    IMPORTERS.check(name)
    importer = IMPORTERS[name]
    if len(paths) > 1 and not importer.SEVERAL_FILES:
        raise DataError(
            f"expected one input of the format {name}, got {len(paths)}",
            where=str(paths[1]),
            remedy="shard each on its own",
        )
    where = ", ".join(map(str, paths))
    labels = (label,) if isinstance(label, str) else tuple(label or ())
    roles = Roles(tuple(features), labels)
    _check_roles(roles, where)
    source = importer.open(paths, roles, _read_options(name, options))
    if not importer.HEEDS_ROLES:
        source = _with_roles(source, labels, features, where)
    if real_labels:
        source = _with_real_labels(source, where)
    return channels_last(source, channels, where)


def detect_format(path: Path) -> str:
    """The name of the format of a file or folder.

    Raises:
        DataError: It has no known suffix.
    """
    for name, importer in IMPORTERS.items():
        if importer.accepts(path):
            return name
    raise DataError(
        f"files {path.suffix} are in no known format",
        where=str(path),
        remedy=f"choose one of {', '.join(IMPORTERS)} with --format, or convert the file",
    )


def describe_formats() -> str:
    """All formats in one sentence, for help and messages."""
    return "; ".join(f"{name}: {importer.INPUT}" for name, importer in IMPORTERS.items())


def _read_options(name: str, given: dict[str, Any]) -> Section:
    kind = IMPORTERS.options(name)
    for key in given:
        if key not in kind.keys():
            holders = [other for other in IMPORTERS if key in IMPORTERS.options(other).keys()]
            raise DataError(
                f"the format {name} has no such option"
                + (f", only {', '.join(holders)}" if holders else ""),
                where=f"--{key}",
                remedy=f"leave out --{key}, or choose another --format",
            )
    return kind.read(given, Place(origin=lambda key: f"--{key}", remedy="see 'mpidl shard --help'"))


def _check_roles(roles: Roles, where: str) -> None:
    if both := set(roles.labels) & set(roles.features):
        raise DataError(
            f"{sorted(both)[0]!r} is both a feature and a label",
            where=where,
            remedy="name it with --feature or with --label",
        )


def _with_real_labels(source: Source, where: str) -> Source:
    """The source with whole numbers in its labels as real numbers."""
    fields = source.read(0, min(1, source.samples))
    labels = [
        name
        for name, array in fields.items()
        if source.roles.get(name, infer_role(name, array, source.label)) == "label"
    ]
    if not labels or source.class_names is not None:
        what = "has no label" if not labels else f"the label {labels[0]!r} holds words"
        raise DataError(
            f"{what}, which cannot become real numbers",
            where=where,
            remedy="name a label of numbers with --label, or leave out --real-labels",
        )

    def read(start: int, stop: int) -> Arrays:
        arrays = dict(source.read(start, stop))
        for name in labels:
            if arrays[name].dtype.kind in "iub":
                small = arrays[name].dtype.itemsize <= 2
                arrays[name] = arrays[name].astype(np.float32 if small else np.float64)
        return arrays

    return replace(source, read=read)


def _with_roles(
    source: Source, labels: Sequence[str], features: Sequence[str], where: str
) -> Source:
    """The source with the roles that the user names, where the importer has not found them."""
    found = source.label is not None  # by the importer: the first label, under its own name
    named: dict[str, Role] = dict.fromkeys(features, "feature")
    named |= dict.fromkeys(labels[1:] if found else labels, "label")
    if not named:
        return source
    fields = source.read(0, min(1, source.samples))
    for name, role in named.items():
        if name not in fields:
            raise DataError(
                f"has no field {name!r}, only {', '.join(sorted(fields))}",
                where=where,
                remedy=f"name one of these with --{role}",
            )
    roles = dict(source.roles) | named
    if features:
        for name, array in fields.items():
            if infer_role(name, array, source.label) == "feature":
                roles.setdefault(name, "other")
    label = source.label if found or not labels else labels[0]
    return replace(source, label=label, roles=roles)
