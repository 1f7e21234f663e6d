"""Formats of raw data, one file each, and `open_source`, which reads any of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mpidl.data.formats.channels import Channels, channels_last
from mpidl.data.formats.source import NO_ROLES, Importer, Roles, Source
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
        "text": "mpidl.data.formats.text:TextImporter",
        "netcdf": "mpidl.data.formats.netcdf:NetcdfImporter",
        "zarr": "mpidl.data.formats.zarr:ZarrImporter",
        "images": "mpidl.data.formats.images:ImagesImporter",
        "idx": "mpidl.data.formats.idx:IdxImporter",
    },
)


def open_source(
    paths: Sequence[Path],
    roles: Roles = NO_ROLES,
    *,
    format: str | None = None,
    channels: Channels | None = None,
    **options: Any,
) -> Source:
    """The source for raw files or a folder.

    Args:
        paths: As on the command line.
        roles: Names of the features and labels, fields or columns of a table.
        format: A name in `IMPORTERS`; None: the one that accepts the first path.
        channels: Where images have theirs; "first" turns (c, h, w) into (h, w, c).
        options: Of the format, see its `Options`.

    Raises:
        DataError: A file is not in that format, has no such field, or holds images that seem to
            have their channels first; the message names it.
        ConfigError: There is no such format, or an option has an impossible value.
    """
    roles.check()
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
    source = importer.open(paths, roles, _read_options(name, options))
    where = ", ".join(map(str, paths))
    return channels_last(_with_roles(source, roles, where), channels, where)


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


def _with_roles(source: Source, roles: Roles, where: str) -> Source:
    """The source with the roles that the user names, where the importer has not given them."""
    if not roles.named or source.roles.named:
        return source
    fields = source.read(0, min(1, source.samples))
    for option, names in (("--feature", roles.features), ("--label", roles.labels)):
        for name in names:
            if name not in fields:
                raise DataError(
                    f"has no field {name!r}, only {', '.join(sorted(fields))}",
                    where=where,
                    remedy=f"name one of these with {option}",
                )
    return replace(source, roles=roles)
