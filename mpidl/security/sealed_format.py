"""The format of a sealed file: a header of fixed room, then segments that are encrypted apart.

    magic (8 bytes), length of the header's record (4 bytes, little endian), the record (msgpack),
    zeros up to `ROOM` - 32, HMAC-SHA256 of all before it
    segment 0, segment 1, ...: each ciphertext of `segment` bytes (the last one fewer) and a tag

Segments are those of streaming AES-GCM-HKDF (Google's Tink): the key is derived from the data key
and a salt; a nonce is a prefix, the number of the segment and whether it is the last one; the
associated data are the identity of the file. Hence a segment fits at its own place of its own file
only. A segment that was written twice has a prefix of its own, listed in the header: no nonce is
used twice.

The data key is wrapped by a key-encryption key (AES key wrap, RFC 3394), and that one for each
recipient (HPKE, RFC 9180: X25519, HKDF-SHA256, AES-256-GCM). The header's HMAC has a key that is
derived from the data key: it covers sizes, recipients and generation, and commits to the key.
"""

from __future__ import annotations

import struct
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from mpidl.errors import DataError

MAGIC = b"\x93MPIDLS1"
ROOM = 16 << 10  # bytes of the header
TAG, MAC, PREFIX = 16, 32, 7  # bytes
SEGMENT = 16 << 10  # bytes of plaintext: small reads decrypt little that nobody asked for
MOST_RECIPIENTS = 32
MOST_REWRITTEN = 512  # segments
LARGEST = (1 << 32) * SEGMENT - 1  # a nonce has four bytes for the number of a segment
_HEAD = struct.Struct("<8sI")
_NUMBER = struct.Struct(">IB")
_REMEDY = "copy the file again from where it was sealed"

Key = Annotated[bytes, Meta(min_length=32, max_length=32)]
Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.@+-]{1,64}\Z")]


class Wrapped(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The key-encryption key for one recipient.

    Attributes:
        name: Of the recipient, for people.
        key: The recipient's X25519 public key.
        sealed: By HPKE.
    """

    name: Name
    key: Key
    sealed: Annotated[bytes, Meta(min_length=80, max_length=80)]


class Rewritten(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A segment that was written more than once, and the prefix of its last nonce."""

    number: Annotated[int, Meta(ge=0, lt=1 << 32)]
    prefix: Annotated[bytes, Meta(min_length=PREFIX, max_length=PREFIX)]


class Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a sealed file says of itself.

    Attributes:
        version: Of the format.
        cipher: Of the segments.
        segment: Bytes of plaintext in each segment but the last.
        size: Bytes of plaintext.
        identity: Of the file, drawn at random.
        salt: Of the key of the segments.
        prefix: Of the nonces.
        generation: Rises with each change of the recipients.
        data_key: Wrapped by the key-encryption key.
        recipients: Who can open it.
        rewritten: Segments with prefixes of their own.
    """

    version: Literal[1] = 1
    cipher: Literal["AES-256-GCM"] = "AES-256-GCM"
    segment: Literal[16384] = 16384
    size: Annotated[int, Meta(ge=0, le=LARGEST)]
    identity: Key
    salt: Key
    prefix: Annotated[bytes, Meta(min_length=PREFIX, max_length=PREFIX)]
    generation: Annotated[int, Meta(ge=1, lt=1 << 53)]
    data_key: Annotated[bytes, Meta(min_length=40, max_length=40)]
    recipients: Annotated[tuple[Wrapped, ...], Meta(min_length=1, max_length=MOST_RECIPIENTS)]
    rewritten: Annotated[tuple[Rewritten, ...], Meta(max_length=MOST_REWRITTEN)] = ()

    @property
    def segments(self) -> int:
        """Their number; an empty file has none."""
        return -(-self.size // self.segment)

    @property
    def stored(self) -> int:
        """Bytes of the whole file."""
        return ROOM + self.size + TAG * self.segments

    @property
    def context(self) -> bytes:
        """What keys are derived for: a key of another format or file is another one."""
        return b"mpidl sealed file 1 AES-256-GCM " + str(self.segment).encode() + self.identity

    def nonce(self, number: int, prefix: bytes = b"") -> bytes:
        """The nonce of a segment: that of the header, or with a prefix of its own."""
        last = number == self.segments - 1
        return (prefix or self.prefix) + _NUMBER.pack(number, last)


def encode(header: Header) -> bytes:
    """The header's bytes before its HMAC."""
    record = msgspec.msgpack.encode(header)
    return (_HEAD.pack(MAGIC, len(record)) + record).ljust(ROOM - MAC, b"\0")


def decode(stored: bytes, where: Any) -> Header:
    """The header in the first `ROOM` bytes of a file; its HMAC is still to be checked.

    Args:
        stored: These bytes.
        where: The file, for messages.

    Raises:
        DataError: They are no header of this version.
    """
    if len(stored) != ROOM:
        raise damaged(where, "is truncated: it has no room for a header")
    magic, length = _HEAD.unpack_from(stored)
    end = _HEAD.size + length
    if magic != MAGIC:
        raise DataError("is not a sealed file", where=str(where), remedy="check the path")
    if end > ROOM - MAC or any(stored[end : ROOM - MAC]):
        raise damaged(where, "its header is damaged")
    try:
        header = msgspec.msgpack.decode(stored[_HEAD.size : end], type=Header)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise damaged(where, "its header is damaged, or of another version") from error
    numbers = [one.number for one in header.rewritten]
    if numbers != sorted(set(numbers)) or (numbers and numbers[-1] >= header.segments):
        raise damaged(where, "its header is damaged")
    return header


def damaged(where: Any, what: str) -> DataError:
    """The error for a file that is not what was sealed."""
    return DataError(what, where=str(where), remedy=_REMEDY)
