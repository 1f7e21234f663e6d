"""Reads sealed files: any range, each segment authenticated before a byte of it is used."""

from __future__ import annotations

import hashlib
import hmac
import io
import os
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from threading import Lock
from typing import Any

from mpidl.errors import SecurityError
from mpidl.extras import load_extra
from mpidl.files import read_error
from mpidl.security.key_files import ACTIVITY, crypto
from mpidl.security.sealed_format import MAC, MAGIC, ROOM, TAG, Header, damaged, decode
from mpidl.security.sealing_keys import FileKeys, keyring

MOST_CACHED = 16  # segments of a file, for readers of small pieces
READ_BYTES = 4 << 20  # of the plaintext of a whole file, at a time
TOGETHER = 16  # segments that are read together: their ciphertext stays in the cache


def is_sealed(path: Path | str) -> bool:
    """Whether a file is sealed; False where there is none that can be read.

    Neither the library nor a key is needed to tell.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


_required = [False]


def require(sealed: bool) -> None:
    """Refuse files that are not sealed from now on, see `security.require_sealed`."""
    _required[0] = sealed


def check_sealed(path: Path | str) -> None:
    """Refuse a file that is not sealed.

    Raises:
        SecurityError: It is not.
    """
    if not is_sealed(path):
        raise SecurityError(
            "is not sealed, where sealed files are required",
            where=str(path),
            remedy="if you trust it, seal it: mpidl seal",
        )


def check_required(path: Path | str) -> None:
    """Refuse a file that is not sealed, where that is required."""
    if _required[0] and Path(path).exists():
        check_sealed(path)


class NotAuthentic(OSError):
    """A segment is not what was sealed."""

    def __init__(self, number: int) -> None:
        super().__init__(f"segment {number} of the sealed file is not authentic")


class Cipher:
    """Encrypts and decrypts segments of one file, outside of Python's lock."""

    def __init__(self, header: Header, keys: FileKeys) -> None:
        self.header = header
        self.key = keys.segments
        self.prefixes = {one.number: one.prefix for one in header.rewritten}
        self._aead = crypto("ciphers.aead").AESGCM(keys.segments)
        self._invalid = load_extra("cryptography.exceptions", ACTIVITY).InvalidTag

    def nonce(self, number: int) -> bytes:
        """The nonce of a segment."""
        return self.header.nonce(number, self.prefixes.get(number, b""))

    def encrypt_into(self, number: int, data: Any, out: Any, nonce: bytes = b"") -> None:
        """Encrypt a segment.

        Args:
            number: Of the segment.
            data: Its plaintext.
            out: Takes ciphertext and tag.
            nonce: In place of that of a segment that is not the last one.
        """
        self._aead.encrypt_into(nonce or self.nonce(number), data, self.header.identity, out)

    def decrypt_into(self, number: int, sealed: Any, out: Any) -> None:
        """Decrypt a segment.

        Args:
            number: Of the segment.
            sealed: Ciphertext and tag.
            out: Takes the plaintext.

        Raises:
            NotAuthentic: It is not what was sealed; `out` holds nothing of it.
        """
        try:
            self._aead.decrypt_into(self.nonce(number), sealed, self.header.identity, out)
        except self._invalid as error:
            raise NotAuthentic(number) from error


class SealedFile(io.RawIOBase):
    """A sealed file, open for reading: a file object over its plaintext.

    Several threads may call `read_into` at once.

    Args:
        path: The file.

    Attributes:
        header: Of the file.
        size: Bytes of plaintext.

    Raises:
        SecurityError: No key of this process opens it.
        DataError: It is damaged.
        UnreadableError: It cannot be read now.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = path
        self._file = -1
        self._cached: OrderedDict[int, bytearray] = OrderedDict()
        try:
            self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise read_error(error, path) from error
        try:
            self.header, self.keys = open_header(os.pread(self._file, ROOM, 0), path)
            stored = os.fstat(self._file).st_size
            if stored != self.header.stored:
                what = f"is truncated or extended: it has {stored:,} bytes, and "
                raise damaged(path, f"{what}{self.header.stored:,} were sealed")
        except BaseException:
            self.close()
            raise
        self.cipher = Cipher(self.header, self.keys)
        self.size = self.header.size
        self._position = 0
        self._lock = Lock()
        self._bounce = bytearray(TOGETHER * (self.header.segment + TAG))
        self._bounce_lock = Lock()

    def read_into(self, memory: Any, offset: int) -> None:
        """Read exactly as many bytes as `memory` has.

        Args:
            memory: A buffer of bytes.
            offset: In the plaintext.

        Raises:
            NotAuthentic: A segment is not what was sealed.
            OSError: The file ends before, or cannot be read.
        """
        view, each = memoryview(memory).cast("B"), self.header.segment
        if offset < 0 or offset + len(view) > self.size:
            raise OSError(f"the file ends at byte {self.size}, before the end of its data")
        while view:
            number, within = divmod(offset, each)
            whole = 0 if within else self._whole_segments(number, len(view))
            if whole:
                count = min(whole * each, self.size - offset)
                self._decrypt(number, view[:count])
            else:
                segment = self._segment(number)
                count = min(len(view), len(segment) - within)
                view[:count] = memoryview(segment)[within : within + count]
            view, offset = view[count:], offset + count

    def _whole_segments(self, number: int, count: int) -> int:
        """How many segments from `number` on lie in the next `count` bytes, at most at a time."""
        end = number * self.header.segment + count
        last = self.header.segments if end >= self.size else end // self.header.segment
        return min(last - number, TOGETHER)

    def _decrypt(self, number: int, out: memoryview) -> None:
        """Decrypt the segments from `number` on that fill `out`."""
        each = self.header.segment
        count = -(-len(out) // each)
        # Memory that was used before has its pages; another thread takes fresh one
        mine = self._bounce_lock.acquire(blocking=False)
        try:
            room = self._bounce if mine else bytearray(TOGETHER * (each + TAG))
            sealed = memoryview(room)[: len(out) + count * TAG]
            self._read_stored(number, sealed)
            for index in range(count):
                own = out[index * each : (index + 1) * each]
                here = sealed[index * (each + TAG) :][: len(own) + TAG]
                self.cipher.decrypt_into(number + index, here, own)
        finally:
            if mine:
                self._bounce_lock.release()

    def _read_stored(self, number: int, out: memoryview) -> None:
        """Ciphertext from a segment on."""
        offset = ROOM + number * (self.header.segment + TAG)
        while out:
            got = os.preadv(self._file, [out], offset)
            if not got:
                raise NotAuthentic(number)
            out, offset = out[got:], offset + got

    def _segment(self, number: int) -> bytearray:
        """A whole segment; the last ones are kept."""
        with self._lock:
            held = self._cached.get(number)
            if held is not None:
                self._cached.move_to_end(number)
                return held
        start = number * self.header.segment
        held = bytearray(min(self.header.segment, self.size - start))
        self._decrypt(number, memoryview(held))
        with self._lock:
            self._cached[number] = held
            while len(self._cached) > MOST_CACHED:
                self._cached.popitem(last=False)
        return held

    @property
    def descriptor(self) -> int:
        """Of the file on disk."""
        return self._file

    def readable(self) -> bool:
        """See `io.RawIOBase`."""
        return True

    def seekable(self) -> bool:
        """See `io.RawIOBase`."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """See `io.RawIOBase`."""
        base = (0, self._position, self.size)[whence]
        self._position = max(0, base + offset)
        return self._position

    def tell(self) -> int:
        """See `io.RawIOBase`."""
        return self._position

    def readinto(self, memory: Any) -> int:
        """See `io.RawIOBase`."""
        view = memoryview(memory).cast("B")
        count = max(0, min(len(view), self.size - self._position))
        self.read_into(view[:count], self._position)
        self._position += count
        return count

    def pieces(self) -> Iterator[memoryview]:
        """The plaintext piece by piece, valid until the next one."""
        held = bytearray(min(READ_BYTES, self.size))
        for start in range(0, self.size, READ_BYTES):
            piece = memoryview(held)[: min(READ_BYTES, self.size - start)]
            self.read_into(piece, start)
            yield piece

    def close(self) -> None:
        """Close the file."""
        if not self.closed:
            super().close()
            if self._file >= 0:
                os.close(self._file)
            self._cached.clear()


def open_header(stored: bytes, path: Path | str) -> tuple[Header, FileKeys]:
    """A header, authenticated, and the keys of the file.

    Args:
        stored: The first bytes of the file.
        path: Of the file, for messages.

    Raises:
        SecurityError: No key of this process opens it, or it is from before a change of recipients.
        DataError: It is damaged.
    """
    header, ring = decode(stored, path), keyring()
    keys = ring.unwrap(header, path)
    if not hmac.compare_digest(keys.mac(stored[:-MAC]), stored[-MAC:]):
        raise damaged(path, "its header is damaged")
    ring.check_generation(header, path)
    return header, keys


def content_sha256(path: Path) -> str:
    """SHA-256 of a file's plaintext, in hexadecimal; of a sealed file that of what was sealed."""
    if not is_sealed(path):
        with open(path, "rb") as plain:
            return hashlib.file_digest(plain, "sha256").hexdigest()
    digest = hashlib.sha256()
    with SealedFile(path) as file:
        for piece in file.pieces():
            digest.update(piece)
    return digest.hexdigest()


def content_size(path: Path, stored: int) -> int:
    """Bytes of a file's plaintext; `stored`: its size on disk."""
    if not is_sealed(path):
        return stored
    with SealedFile(path) as file:
        return file.size


def read_bytes(path: Path) -> bytes:
    """The plaintext of a file, sealed or not.

    Raises:
        OSError: It cannot be read.
        DataError: It is sealed and damaged.
        SecurityError: It is sealed for others.
    """
    check_required(path)
    if not is_sealed(path):
        return path.read_bytes()
    with SealedFile(path) as file:
        held = bytearray(file.size)
        file.read_into(held, 0)
        return bytes(held)
