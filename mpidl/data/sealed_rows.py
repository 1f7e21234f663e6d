"""Reads rows of a sealed file at their offsets in its plaintext.

In C by one call, outside of Python's lock, with the AES-GCM of the OpenSSL that Python itself has
loaded (for hashlib); where there is none, or no C library, by `mpidl.security.sealed_file`.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpidl.backend.signature import C, Kernel
from mpidl.data.native import Indices, bind, count_rows, raise_failed, runs
from mpidl.security.sealed_file import NotAuthentic, SealedFile
from mpidl.security.sealed_format import ROOM

PIECE = 4 << 20  # bytes that are decrypted before they are placed
NOT_AUTHENTIC = 1 << 32
# In the order of `struct evp` in kernels/cpu/sealed.c
EVP = (
    "EVP_CIPHER_CTX_new",
    "EVP_CIPHER_CTX_free",
    "EVP_aes_256_gcm",
    "EVP_DecryptInit_ex",
    "EVP_DecryptUpdate",
    "EVP_CIPHER_CTX_ctrl",
    "EVP_DecryptFinal_ex",
)
UNSEAL = Kernel(
    "sealed",
    "file:size evp:int64(7) keys:uint8(71) numbers:int64(rewritten) prefixes:uint8(rewritten*7) "
    "ranges:int64(count*2) offsets:int64(chunks) place:int64?(rows) out:uint8 rewritten:size "
    "bytes:size room:size count:size chunks:size chunk_rows:size row_bytes:size rows:size "
    "threads:size",
    None,
    (C,),
)


@cache
def _functions() -> NDArray[np.int64] | None:
    """(7,) addresses of OpenSSL's functions; None where Python has no OpenSSL to share."""
    try:
        import _hashlib

        library = ctypes.CDLL(_hashlib.__file__)  # finds what that module is linked with
        found = [ctypes.cast(getattr(library, name), ctypes.c_void_p).value for name in EVP]
    except (ImportError, AttributeError, OSError):
        return None
    return np.array(found, np.uint64).view(np.int64)


class SealedRows:
    """As `mpidl.data.native` reads rows of a plain file.

    Args:
        file: The sealed file.
        use_c: False: by Python, for tests.
    """

    def __init__(self, file: SealedFile, *, use_c: bool = True) -> None:
        self._file = file
        self._evp = _functions() if use_c else None
        self._bound = bind("unseal_rows", UNSEAL) if self._evp is not None else None
        header = file.header
        keys = file.keys.segments + header.identity + header.prefix
        self._keys = np.frombuffer(keys, np.uint8)
        self._numbers = np.array([one.number for one in header.rewritten], np.int64)
        prefixes = b"".join(one.prefix for one in header.rewritten)
        self._prefixes = np.frombuffer(prefixes, np.uint8)

    def read_rows(
        self,
        ranges: Indices,
        offsets: Indices,
        out: NDArray[np.uint8],
        *,
        chunk_rows: int,
        row_bytes: int,
    ) -> None:
        """See `mpidl.data.native.read_rows`."""
        rows = count_rows(ranges, len(offsets) * chunk_rows)
        if rows * row_bytes != len(out):
            raise ValueError(f"the rows do not fit into {len(out)} bytes of memory")
        table = out.reshape(rows, row_bytes)
        if self._call(ranges, offsets, None, table, rows, chunk_rows, 1):
            return
        memory = out.data
        for offset, size in runs(ranges, offsets, chunk_rows, row_bytes):
            self._file.read_into(memory[:size], offset)
            memory = memory[size:]

    def place_rows(
        self,
        ranges: Indices,
        offsets: Indices,
        place: Indices,
        out: NDArray[np.uint8],
        *,
        chunk_rows: int,
        threads: int = 1,
    ) -> None:
        """See `mpidl.data.native.place_rows`."""
        rows, (room, row_bytes) = count_rows(ranges, len(offsets) * chunk_rows), out.shape
        if rows != len(place) or (rows and (place.min() < 0 or place.max() >= room)):
            raise ValueError(f"{len(place)} places for {rows} rows do not fit into {room} rows")
        if self._call(ranges, offsets, place, out, rows, chunk_rows, threads):
            return
        most, row = max(1, PIECE // row_bytes), 0
        held = np.empty((min(most, rows), row_bytes), np.uint8)
        for offset, size in runs(ranges, offsets, chunk_rows, row_bytes):
            for start in range(0, size // row_bytes, most):
                count = min(most, size // row_bytes - start)
                self._file.read_into(held[:count].reshape(-1).data, offset + start * row_bytes)
                out[place[row : row + count]] = held[:count]
                row += count

    def _call(
        self,
        ranges: Indices,
        offsets: Indices,
        place: Indices | None,
        out: NDArray[np.uint8],
        rows: int,
        chunk_rows: int,
        threads: int,
    ) -> bool:
        """Read by C; False where there is none."""
        if self._bound is None:
            return False
        binder, function = self._bound
        arrays: tuple[Any, ...] = (
            self._evp,
            self._keys,
            self._numbers,
            self._prefixes,
            np.ascontiguousarray(ranges).reshape(-1),
            offsets,
            None if place is None else np.ascontiguousarray(place),
            out,
        )
        about = (len(self._numbers), self._file.size, ROOM, len(ranges), len(offsets))
        counts = (*about, chunk_rows, out.shape[1], rows, threads)
        found = int(function(*binder.pointers((self._file.descriptor, *arrays, *counts))))
        if found <= -NOT_AUTHENTIC:
            raise NotAuthentic(-found - NOT_AUTHENTIC)
        raise_failed(found)
        return True
