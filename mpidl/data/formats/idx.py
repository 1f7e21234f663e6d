"""IDX files, the format of MNIST."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpidl.data.formats.source import Importer, Roles, Source, source_from_files
from mpidl.registry import NoOptions

_DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


class IdxImporter(Importer):
    """One array a file: the features, then the labels."""

    INPUT = "IDX files as of MNIST, gzipped or not: the images, then the labels"
    SUFFIXES = (".idx", ".idx.gz", "-ubyte", "-ubyte.gz")
    SEVERAL_FILES = True

    @classmethod
    def accepts(cls, path: Path) -> bool:
        """Also files without a suffix: IDX has no agreed one."""
        return super().accepts(path) or (path.is_file() and path.suffix in ("", ".gz"))

    @classmethod
    def open(cls, paths: Sequence[Path], roles: Roles, options: NoOptions) -> Source:
        """See `Importer.open`."""
        return source_from_files(paths, read_idx, "check the file, or choose another --format")


def read_idx(path: Path) -> NDArray[Any]:
    """The array in an IDX file (LeCun's MNIST format), gzipped or not, in native byte order.

    Raises:
        ValueError: It is not an IDX file, or is truncated.
    """
    with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as file:
        head = file.read(4)
        if len(head) != 4 or head[:2] != b"\0\0" or head[2] not in _DTYPES:
            raise ValueError("not an IDX file: its magic number is wrong")
        shape = struct.unpack(f">{head[3]}I", file.read(4 * head[3]))
        body = file.read()
    dtype = np.dtype(_DTYPES[head[2]])
    if len(body) != dtype.itemsize * int(np.prod(shape, dtype=np.int64)):
        raise ValueError(
            f"the IDX header promises {shape} of {dtype.name}, but {len(body)} bytes follow"
        )
    return np.frombuffer(body, dtype).reshape(shape).astype(dtype.newbyteorder("="), copy=False)
