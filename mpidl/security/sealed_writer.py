"""Writes sealed files, in any order of writes: no plaintext reaches the disk, not for a moment.

A segment stays in memory until all of it was written; it is then encrypted once. The last segment
so far and the first one, which HDF5 writes once more at the end, stay to the end. Where a segment
on disk is written to again, it is decrypted, and encrypted under a nonce with a prefix of its own.
The header is written last: until then the file opens nowhere.
"""

from __future__ import annotations

import os
import secrets
from collections import OrderedDict
from pathlib import Path
from typing import Any

import msgspec

from mpidl.security.sealed_file import Cipher
from mpidl.security.sealed_format import (
    MOST_REWRITTEN,
    PREFIX,
    ROOM,
    TAG,
    Header,
    Rewritten,
    encode,
)
from mpidl.security.sealing_keys import Envelope, FileKeys

MOST_PARTIAL = 4096  # segments in memory: 64 MiB
TOGETHER = 64  # segments of one write to the disk


class _Segment:
    """A segment in memory, and which of its bytes were written."""

    def __init__(self, room: int) -> None:
        self.data = bytearray(room)
        self.ranges: list[tuple[int, int]] = []  # ascending, apart

    def write(self, start: int, data: memoryview) -> None:
        stop = start + len(data)
        self.data[start:stop] = data
        apart = [(low, high) for low, high in self.ranges if high < start or low > stop]
        joined = [(low, high) for low, high in self.ranges if not (high < start or low > stop)]
        low, high = min([start, *(r[0] for r in joined)]), max([stop, *(r[1] for r in joined)])
        self.ranges = sorted([*apart, (low, high)])

    @property
    def is_full(self) -> bool:
        return self.ranges == [(0, len(self.data))]


def new_header(envelope: Envelope) -> tuple[Header, FileKeys]:
    """The header of a new file, still of no size, and the keys of the file."""
    data = secrets.token_bytes(32)
    header = Header(
        size=0,
        identity=secrets.token_bytes(32),
        salt=secrets.token_bytes(32),
        prefix=secrets.token_bytes(PREFIX),
        generation=1,
        data_key=envelope.wrap(data),
        recipients=envelope.recipients,
    )
    return header, FileKeys.derive(data, header)


class SealedWriter:
    """The sealed file that is written: positioned reads and writes of its plaintext.

    Args:
        path: The file, which is emptied.
        envelope: For whom.

    Attributes:
        size: Bytes of plaintext so far.

    Raises:
        OSError: It cannot be written.
    """

    def __init__(self, path: Path | str, envelope: Envelope) -> None:
        self.path = path
        self.size = 0
        self._header, self._keys = new_header(envelope)
        self._cipher = Cipher(self._header, self._keys)
        self._open: OrderedDict[int, _Segment] = OrderedDict()  # in memory
        self._stored: set[int] = set()  # on disk
        self._prefixes = self._cipher.prefixes
        self._bounce = bytearray(TOGETHER * (self._each + TAG))
        self.file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)

    @property
    def _each(self) -> int:
        return self._header.segment

    def start(self) -> None:
        """Empty the file."""
        os.ftruncate(self.file, 0)
        os.ftruncate(self.file, ROOM)

    def write(self, data: Any, offset: int) -> None:
        """Write all of `data` at an offset of the plaintext.

        Raises:
            OSError: The disk is full, or such.
        """
        view = memoryview(data).cast("B")
        touched = {self._last}
        self.size = max(self.size, offset + len(view))
        while view:
            number, within = divmod(offset, self._each)
            whole = 0 if within else self._fresh(number, len(view) // self._each)
            if whole:
                count = whole * self._each
                self._seal(number, view[:count])
            else:
                count = min(len(view), self._each - within)
                self._held(number).write(within, view[:count])
                touched.add(number)
            view, offset = view[count:], offset + count
        self._evict(touched)

    def _fresh(self, number: int, most: int) -> int:
        """How many segments from `number` on can be encrypted straight from the caller's memory.

        Not the first, not the last so far, none that is known already.
        """
        count, last = 0, self._last
        while count < min(most, TOGETHER):
            here = number + count
            if here == 0 or here >= last or here in self._open or here in self._stored:
                break
            count += 1
        return count

    @property
    def _last(self) -> int:
        return max(0, -(-self.size // self._each) - 1)

    def _held(self, number: int) -> _Segment:
        """A segment in memory; one on disk is decrypted, and will have another nonce."""
        segment = self._open.get(number)
        if segment is None:
            segment = self._open[number] = _Segment(self._each)
            if number in self._stored:
                self._load(number, segment)
        self._open.move_to_end(number)
        return segment

    def _load(self, number: int, segment: _Segment) -> None:
        """Take a segment back from disk."""
        held = os.pread(self.file, self._each + TAG, self._place(number))
        self._cipher.decrypt_into(number, held, memoryview(segment.data))
        segment.ranges = [(0, self._each)]
        self._stored.discard(number)
        self._prefixes[number] = secrets.token_bytes(PREFIX)
        if len(self._prefixes) > MOST_REWRITTEN:
            raise OSError(f"more than {MOST_REWRITTEN} segments were written again")

    def _place(self, number: int) -> int:
        return ROOM + number * (self._each + TAG)

    def _evict(self, touched: set[int]) -> None:
        """Encrypt what is complete of what a write touched; of too many others the oldest."""
        kept = {0, self._last}
        free = [n for n in touched - kept if n in self._open and self._open[n].is_full]
        excess = len(self._open) - len(free) - MOST_PARTIAL
        if excess > 0:
            free += [n for n in self._open if n not in kept and n not in free][:excess]
        for number in free:
            self._seal(number, memoryview(self._open.pop(number).data))

    def _seal(self, number: int, data: memoryview, last: bytes = b"") -> None:
        """Encrypt consecutive segments, and write them.

        Args:
            number: Of the first.
            data: Their plaintext.
            last: The nonce, of the last segment of the file.
        """
        each = self._each
        out, count = memoryview(self._bounce), -(-len(data) // each)
        for index in range(count):
            start = index * (each + TAG)
            own = data[index * each : (index + 1) * each]
            sealed = out[start : start + len(own) + TAG]
            self._cipher.encrypt_into(number + index, own, sealed, last)
        self._put(out[: len(data) + count * TAG], self._place(number))
        self._stored.update(range(number, number + count))

    def _put(self, data: Any, offset: int) -> None:
        rest = memoryview(data)
        while rest:
            count = os.pwrite(self.file, rest, offset)
            rest, offset = rest[count:], offset + count

    def read_into(self, memory: Any, offset: int) -> int:
        """Read what was written, up to the end.

        Returns:
            Bytes read.
        """
        view = memoryview(memory).cast("B")[: max(0, self.size - offset)]
        done = 0
        while done < len(view):
            number, within = divmod(offset + done, self._each)
            count = min(len(view) - done, self._each - within)
            data: Any = bytes(self._each)
            if number in self._open:
                data = self._open[number].data
            elif number in self._stored:
                held = os.pread(self.file, self._each + TAG, self._place(number))
                data = bytearray(self._each)
                self._cipher.decrypt_into(number, held, memoryview(data))
            view[done : done + count] = memoryview(data)[within : within + count]
            done += count
        return len(view)

    def truncate(self, size: int) -> None:
        """Set the size of the plaintext; new bytes are zeros."""
        if size < self.size:
            number, within = divmod(size, self._each)
            if within:
                segment = self._held(number)
                segment.data[within:] = bytes(self._each - within)
            beyond = number + bool(within)
            for other in [n for n in self._open if n >= beyond]:
                del self._open[other]
            for other in [n for n in self._stored if n >= beyond]:
                self._stored.discard(other)
                self._prefixes[other] = secrets.token_bytes(PREFIX)  # of what is written there next
        self.size = size

    def finish(self) -> None:
        """Encrypt the rest, and write the header: now the file opens.

        Raises:
            OSError: The disk is full, or such.
        """
        header = msgspec.structs.replace(self._header, size=self.size)
        count = header.segments
        for number in range(count):
            if number in self._stored and number != count - 1:
                continue
            data = memoryview(self._held(number).data)
            own = min(self._each, self.size - number * self._each)
            last = header.nonce(number, self._prefixes.get(number, b""))
            self._seal(number, data[:own], last if number == count - 1 else b"")
            del self._open[number]
        rewritten = tuple(
            Rewritten(number, prefix)
            for number, prefix in sorted(self._prefixes.items())
            if number < count
        )
        if len(rewritten) > MOST_REWRITTEN:
            raise OSError(f"more than {MOST_REWRITTEN} segments were written again")
        header = msgspec.structs.replace(header, rewritten=rewritten)
        os.ftruncate(self.file, header.stored)
        encoded = encode(header)
        self._put(encoded + self._keys.mac(encoded), 0)

    def close(self) -> None:
        """Close the file; without `finish` it can never be opened."""
        if self.file >= 0:
            os.close(self.file)
            self.file = -1
        self._open.clear()
