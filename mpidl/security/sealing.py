"""Seals, opens and re-wraps files of any kind."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from mpidl.errors import DataError
from mpidl.files import reading, write_atomically, write_file, writing
from mpidl.security.sealed_file import (
    READ_BYTES,
    SealedFile,
    is_sealed,
    open_header,
)
from mpidl.security.sealed_format import ROOM, encode
from mpidl.security.sealed_writer import SealedWriter
from mpidl.security.sealing_keys import Envelope, find_recipient, keyring, rewrapped


def write_sealed(path: Path | str, content: bytes | memoryview, envelope: Envelope | None) -> None:
    """Write a file at once, as `mpidl.files.write_file`; sealed, where there is an envelope."""
    if envelope is None:
        write_file(path, content)
        return
    with write_atomically(path) as partial:
        write_whole(partial, content, envelope)


def write_whole(path: Path, content: bytes | memoryview, envelope: Envelope | None) -> None:
    """Write a file at once; sealed, where there is an envelope.

    Raises:
        OSError: The file system refuses.
    """
    if envelope is None:
        path.write_bytes(content)
    else:
        _write([content], path, envelope)


def seal_file(path: Path, target: Path, envelope: Envelope) -> None:
    """Write a sealed copy of a file, or of one that is sealed already.

    Args:
        path: The file.
        target: Of the copy; it may be the same.
        envelope: For whom.

    Raises:
        DataError: A file cannot be read or written.
    """
    with writing(target), write_atomically(target) as partial:
        if is_sealed(path):
            with reading(path), SealedFile(path) as file:
                _write(file.pieces(), partial, envelope)
        else:
            with reading(path), open(path, "rb") as plain:
                _write(iter(lambda: plain.read(READ_BYTES), b""), partial, envelope)


def _write(pieces: Iterable[Any], path: Path, envelope: Envelope) -> None:
    writer = SealedWriter(path, envelope)
    try:
        writer.start()
        offset = 0
        for piece in pieces:
            writer.write(piece, offset)
            offset += len(piece)
        writer.finish()
    finally:
        writer.close()


def unseal_file(path: Path, target: Path) -> None:
    """Write the plaintext of a sealed file; for the user alone (mode 600).

    Raises:
        DataError: A file cannot be read or written, or is not sealed.
        SecurityError: It is sealed for others.
    """
    with writing(target), write_atomically(target) as partial, reading(path):
        partial.unlink(missing_ok=True)
        handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(handle, "wb") as out, SealedFile(path) as file:
            for piece in file.pieces():
                out.write(piece)


def check_file(path: Path) -> None:
    """Authenticate every segment.

    Raises:
        DataError: One is not what was sealed.
    """
    with reading(path), SealedFile(path) as file:
        for _ in file.pieces():
            pass


def rewrap(path: Path, *, add: Sequence[str] = (), remove: Sequence[str] = ()) -> tuple[str, ...]:
    """Change who can open a file, without a touch of its data.

    The new header is kept beside the file until it is in place: a job that is killed leaves a file
    that `rewrap` completes.

    Args:
        path: A sealed file that this process can open.
        add: Recipients, as of `find_recipient`.
        remove: Names or recipients, as of `find_recipient`.

    Returns:
        The names of its recipients.

    Raises:
        SecurityError: This process cannot open it, a recipient is unknown, or none would be left.
        DataError: It is damaged, or cannot be written.
    """
    journal = path.with_name(path.name + ".rewrap")
    with reading(path):
        handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        with writing(path):
            _complete(handle, path, journal)
        header, keys = open_header(os.pread(handle, ROOM, 0), path)
        envelope = rewrapped(header.recipients, [find_recipient(n) for n in add], remove)
        changed = msgspec.structs.replace(
            header,
            generation=header.generation + 1,
            recipients=envelope.recipients,
            data_key=envelope.wrap(keys.data),
        )
        encoded = encode(changed)
        with writing(path):
            write_file(journal, encoded + keys.mac(encoded))
            _complete(handle, path, journal)
            keyring().remember_generation(changed)
        return tuple(one.name for one in changed.recipients)
    finally:
        os.close(handle)


def renew(path: Path, *, add: Sequence[str] = (), remove: Sequence[str] = ()) -> tuple[str, ...]:
    """As `rewrap`, under a new data key: the whole file is encrypted anew, and replaced."""
    with reading(path), SealedFile(path) as file:
        held = file.header.recipients
    envelope = rewrapped(held, [find_recipient(name) for name in add], remove)
    seal_file(path, path, envelope)
    return tuple(one.name for one in envelope.recipients)


def _complete(handle: int, path: Path, journal: Path) -> None:
    """Put a header that is kept beside the file in its place, if there is one of this file."""
    try:
        with open(journal, "rb") as file:
            stored = file.read(ROOM + 1)
    except FileNotFoundError:
        return
    new, _ = open_header(stored, journal)
    times = os.fstat(handle)
    others = new.stored != times.st_size
    with suppress(DataError):  # of a header that was half replaced
        others |= open_header(os.pread(handle, ROOM, 0), path)[0].identity != new.identity
    if others:
        raise DataError("belongs to another file", where=str(journal), remedy="remove it")
    os.pwrite(handle, stored, 0)
    os.fsync(handle)
    # The content is as it was: jobs that read the file go on
    os.utime(handle, ns=(times.st_atime_ns, times.st_mtime_ns))
    journal.unlink()
