"""Zarr groups in folders, formats 2 and 3."""

from __future__ import annotations

import base64
import binascii
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from mpidl.data.formats.cf import Store, Variable, plain, source_from_stores
from mpidl.data.formats.source import Importer, Roles, Source, unusable
from mpidl.errors import DataError
from mpidl.extras import load_extra
from mpidl.options import Section

METADATA = ("zarr.json", ".zgroup")
MAX_CHUNK = 1 << 32  # bytes; zarr reads whole chunks
# Codecs of numbers; others may build objects from what they read (pickle)
CODECS = {
    *("blosc", "zstd", "lz4", "zlib", "gzip", "bz2", "lzma", "crc32c", "crc32", "adler32"),
    *("fletcher32", "shuffle", "delta", "fixedscaleoffset", "bitround", "quantize", "astype"),
    *("packbits", "transpose", "bytes", "sharding_indexed"),
}


class ZarrImporter(Importer):
    """Arrays of groups, samples along one dimension; groups one after the other."""

    INPUT = "Zarr groups in folders (needs zarr): arrays along the dimension of the samples"
    SUFFIXES = (".zarr",)
    SEVERAL_FILES = True

    class Options(Section, frozen=True):
        """Where samples are.

        Attributes:
            dim: The dimension of the samples (default: the first one of the variables).
        """

        dim: str | None = None

    @classmethod
    def accepts(cls, path: Path) -> bool:
        """A folder that says so, by its name or its metadata."""
        named = path.name.lower().endswith(cls.SUFFIXES)
        return path.is_dir() and (named or any((path / name).is_file() for name in METADATA))

    @classmethod
    def open(cls, paths: Sequence[Path], roles: Roles, options: Options) -> Source:
        """See `Importer.open`."""
        return source_from_stores(paths, _load, roles, options.dim)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn errors of zarr in this block into our own."""
    try:
        yield
    except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
        # its codecs raise all of these for what is no chunk
        remedy = "copy the folder again; a group of arrays is needed, not an archive or one array"
        raise unusable(error, path, remedy) from error


def _load(path: Path) -> Store:
    zarr: Any = load_extra("zarr", "reading Zarr groups")
    if not path.is_dir():
        raise DataError(
            "is not a folder", where=str(path), remedy="unpack it, and name the folder of the group"
        )
    with _reading(path):
        group = zarr.open_group(str(path), mode="r")
        arrays = dict(sorted(group.arrays()))
        attributes = dict(group.attrs)
    variables, notes = {}, []
    for name, array in arrays.items():
        with _reading(path):
            _check(path, name, array)
            variables[name] = _variable(path, name, array)
            listed = array.shape and not array.shards  # shards are counted otherwise
            absent = array.nchunks - array.nchunks_initialized if listed else 0
        if absent:
            notes.append(
                f"{absent} of {array.nchunks} chunks of {name!r} in {path} have no file: all their "
                f"elements are {array.fill_value}"
            )
    return Store(path, variables, attributes, tuple(notes))


def _check(path: Path, name: str, array: Any) -> None:
    """Refuse codecs that may run code, and chunks that fill the memory.

    Raises:
        DataError: The array has such ones.
    """
    for codec in (*array.filters, *array.compressors, array.serializer):
        for inner in (codec, *getattr(codec, "codecs", ()), *getattr(codec, "index_codecs", ())):
            found = _codec(inner) if inner is not None else "bytes"
            if found not in CODECS and np.dtype(array.dtype).kind in "biuf":
                raise DataError(
                    f"the array {name!r} is encoded by {found!r}, which is not trusted",
                    where=str(path),
                    remedy=f"write it again with one of {', '.join(sorted(CODECS))}",
                )
    size = int(np.prod(array.chunks, dtype=np.float64)) * np.dtype(array.dtype).itemsize
    if size > MAX_CHUNK:
        raise DataError(
            f"the array {name!r} has chunks of {size:,} bytes, which are read as a whole",
            where=str(path),
            remedy=f"rechunk it to less than {MAX_CHUNK:,} bytes",
        )


def _codec(codec: Any) -> str:
    """The name of a codec of Zarr 3, or of numcodecs."""
    name = getattr(codec, "codec_id", None)
    return str(name or codec.to_dict().get("name")).removeprefix("numcodecs.")


def _variable(path: Path, name: str, array: Any) -> Variable:
    attributes = {key: plain(value) for key, value in dict(array.attrs).items()}
    dims = attributes.pop("_ARRAY_DIMENSIONS", None)
    if isinstance(dims, str):  # `plain` takes lists of one apart
        dims = [dims]
    if array.metadata.zarr_format == 3:
        dims = getattr(array.metadata, "dimension_names", None) or dims
    elif array.fill_value is not None and array.fill_value != 0:  # 0 is what nobody chose
        attributes.setdefault("_FillValue", plain(array.fill_value))
    named = isinstance(dims, list | tuple) and len(dims) == len(array.shape)
    if isinstance(fill := attributes.get("_FillValue"), str):
        attributes["_FillValue"] = _decode_fill(fill)

    def read(where: tuple[slice, ...]) -> Any:
        with _reading(path):
            return np.asarray(array[where])

    return Variable(
        name,
        tuple(map(str, dims)) if named and dims is not None and None not in dims else None,
        tuple(array.shape),
        np.dtype(array.dtype),
        attributes,
        read,
    )


def _decode_fill(text: str) -> float | str:
    """xarray writes floats as base64 of float64, which JSON could not hold if they are NaN."""
    try:
        (value,) = struct.unpack("<d", base64.b64decode(text, validate=True))
    except (struct.error, binascii.Error):
        return text
    return float(value)
