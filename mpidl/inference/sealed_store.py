"""The file of a sealed prediction, which all ranks fill.

While it is filled it has the layout of a plain one, but what a chunk has of a dataset is encrypted
in its place, by AES-GCM under a random nonce; nonce and tag are in the dataset `seals`. Classes and
units, which tell of the data, are left out. The key is that of a sealed file; rank 0 tells it to
the others, and its header is kept for a run that goes on. When all chunks are done rank 0 writes
the sealed file.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpidl.comm.context import Context
from mpidl.data import hdf5
from mpidl.errors import DataError
from mpidl.extras import load_extra
from mpidl.files import sync, writing
from mpidl.inference.output import publish_result
from mpidl.inference.store import ABOUT, DONE, SUMS, Layout, Store, allocate
from mpidl.security.key_files import ACTIVITY, crypto
from mpidl.security.sealed_file import open_header
from mpidl.security.sealed_format import ROOM, TAG, encode
from mpidl.security.sealed_writer import new_header
from mpidl.security.sealing_keys import envelope_for

SEALS, HEADER, NONCE = "seals", "sealed header", 12


class SealedStore(Store):
    """As `Store`."""

    def __init__(self, final: Path, layout: Layout, context: Context, *, restart: bool) -> None:
        self._secret = b"", b""  # key and identity
        super().__init__(final, layout, context, restart=restart)
        self._secret = context.bcast_object(self._secret, tuple[bytes, bytes])
        self._aead = crypto("ciphers.aead").AESGCM(self._secret[0])

    def _prepare(self, restart: bool) -> dict[str, int]:
        found = super()._prepare(restart)
        with writing(self.path), hdf5.open_file(self.path) as file:
            stored = file[HEADER][...].tobytes()
        header, keys = open_header(stored, self.path)
        self._secret = keys.segments, header.identity
        return found

    def _shapes(self) -> dict[str, tuple[tuple[int, ...], str]]:
        shapes = super()._shapes()
        parts = len(shapes) - 1
        shapes[SEALS] = (self.layout.chunks, parts, NONCE + TAG), "u1"
        shapes[HEADER] = (ROOM,), "u1"
        return shapes

    def _note(self, file: Any) -> None:
        header, keys = new_header(envelope_for(self.layout.seal_for))
        encoded = encode(header)
        file[HEADER][...] = np.frombuffer(encoded + keys.mac(encoded), np.uint8)
        file.attrs[ABOUT] = self._about()

    def _part(self, name: str) -> int:
        """The number of a dataset among those that are encrypted."""
        return [*self.layout.columns, SUMS].index(name)

    def _data_of(self, name: str, chunk: int) -> bytes:
        """The associated data: a chunk fits at its place only."""
        return self._secret[1] + f"{chunk} {name}".encode()

    def _put(self, name: str, chunks: NDArray[np.int64], array: NDArray[Any], offset: int) -> None:
        first = self.layout.rows(int(chunks[0]))[0]
        for index, chunk in enumerate(map(int, chunks)):
            low, high = (row - first for row in self.layout.rows(chunk))
            part = array[index : index + 1] if name == SUMS else array[low:high]
            self._seal(name, chunk, part, offset)
            offset += part.nbytes

    def _seal(self, name: str, chunk: int, array: NDArray[Any], offset: int) -> None:
        """Encrypt what a chunk has of a dataset, and write it."""
        if not array.nbytes:
            return
        nonce = os.urandom(NONCE)
        plain = array.reshape(-1).view(np.uint8).data
        sealed = np.frombuffer(
            self._aead.encrypt(nonce, plain, self._data_of(name, chunk)), np.uint8
        )
        self._write(sealed[:-TAG], offset)
        parts = self._shapes()[SEALS][0][1]
        place = (chunk * parts + self._part(name)) * (NONCE + TAG)
        seal = np.concatenate([np.frombuffer(nonce, np.uint8), sealed[-TAG:]])
        self._write(seal, self._offsets[SEALS] + place)

    def _get(self, file: Any, name: str, chunk: int) -> NDArray[Any]:
        held = np.ascontiguousarray(super()._get(file, name, chunk))
        if not held.nbytes:
            return held
        seal = file[SEALS][chunk, self._part(name)].tobytes()
        sealed = held.reshape(-1).view(np.uint8).tobytes() + seal[NONCE:]
        invalid = load_extra("cryptography.exceptions", ACTIVITY).InvalidTag
        try:
            plain = self._aead.decrypt(seal[:NONCE], sealed, self._data_of(name, chunk))
        except invalid as error:
            raise DataError(
                f"chunk {chunk} of {name!r} is not authentic",
                where=str(self.path),
                remedy="begin anew with --restart",
            ) from error
        return np.frombuffer(plain, held.dtype).reshape(held.shape)

    def _publish(self, *, overwrite: bool) -> None:
        """Write the sealed file, and remove the one that ranks have filled."""
        temporary = self.final.with_name(f"{self.final.name}.sealed")
        try:
            with hdf5.open_file(self.path) as file:
                seal = envelope_for(self.layout.seal_for)
                with hdf5.open_file(temporary, "w", seal=seal) as out:
                    self._copy(file, out)
            publish_result(temporary, self.final, self.path, overwrite=overwrite)
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
        self.path.unlink()
        sync(self.final.parent)

    def _copy(self, file: Any, out: Any) -> None:
        """Write what the ranks have filled as a plain run has it."""
        layout = self.layout
        for name, (shape, dtype) in super()._shapes().items():
            allocate(out, name, shape, np.dtype(dtype), zeros=False)
        out[DONE][...] = 1
        super()._note(out)
        out.flush()
        for chunk in range(layout.chunks):
            low, high = layout.rows(chunk)
            for name in layout.columns:
                out[name][low:high] = self._get(file, name, chunk)
            if layout.sums:
                out[SUMS][chunk] = self._get(file, SUMS, chunk)
            hdf5.check_written(out)
