"""Messages of one rank to another, sealed: counted, bound to their place, under keys that change.

On the wire: epoch and counter (the nonce), the length of the whole message, the sealed bytes, the
tag. Both sides know besides, and authenticate, the communicator, the message tag, and how many
records the stream of that tag has had: a record that is repeated, left out, reordered or put into
another stream does not open. After `Limits` records or bytes the sender goes on to the next key,
from which the earlier ones cannot be computed.
"""

from __future__ import annotations

import copy
import struct
import threading
from dataclasses import dataclass
from typing import Any

from mpidl.errors import SecurityError
from mpidl.extras import load_extra
from mpidl.security.aead import KEY, TAG, Key, make_key

HEADER = struct.Struct(">IQQ")  # epoch, counter, bytes of the whole message
PLACE = struct.Struct(">8siQQ")  # communicator, tag, number in the stream, bytes of the message
NUMBERS = struct.Struct(">IQ")  # the nonce: as the header begins
HEAD = HEADER.size
OVERHEAD = HEAD + TAG
KEPT = 16  # keys of the past, for records that are opened late
AHEAD = 64  # keys that a record may be ahead
FORGED = (
    "a message between ranks is not genuine: it was changed, repeated, left out or reordered on "
    "the way"
)


@dataclass(frozen=True)
class Limits:
    """When a key is replaced.

    Attributes:
        records: Sealed with one key at most.
        nbytes: In them at most; 2^34 is far below what AES-GCM allows (NIST SP 800-38D).
    """

    records: int = 1 << 20
    nbytes: int = 1 << 34


def forged(peer: int) -> SecurityError:
    """The error for a record that does not open; it says no more than that."""
    return SecurityError(
        FORGED,
        where=f"message of rank {peer}",
        remedy="look for who can reach the network of these nodes, then start again",
    )


class _Chain:
    """Keys that follow from each other: key and next secret come from the secret before."""

    def __init__(self, suite: str, secret: bytes, *, sealing: bool) -> None:
        self.suite = suite
        self.sealing = sealing
        self.epoch = -1
        self._next = secret
        self.keys: dict[int, Key] = {}
        self.advance()

    def advance(self) -> None:
        """To the next key."""
        secret = self._next
        self.epoch += 1
        self.keys[self.epoch] = make_key(
            self.suite, _expand(secret, b"mpidl record key"), sealing=self.sealing
        )
        self._next = _expand(secret, b"mpidl next secret")
        self.keys.pop(self.epoch - KEPT, None)

    def at(self, epoch: int) -> _Chain:
        """This, or a copy that has gone on to a later epoch."""
        if epoch <= self.epoch or epoch > self.epoch + AHEAD:
            return self
        ahead = copy.copy(self)
        ahead.keys = dict(self.keys)
        while ahead.epoch < epoch:
            ahead.advance()
        return ahead


def _expand(secret: bytes, info: bytes) -> bytes:
    hkdf = load_extra("cryptography.hazmat.primitives.kdf.hkdf", "encryption")
    hashes = load_extra("cryptography.hazmat.primitives.hashes", "encryption")
    made: bytes = hkdf.HKDFExpand(hashes.SHA256(), KEY, info).derive(secret)
    return made


class Sender:
    """Seals records for one rank; several threads may do so.

    Args:
        suite: The cipher.
        secret: Of this direction.
        limits: When a key is replaced.
    """

    def __init__(self, suite: str, secret: bytes, limits: Limits) -> None:
        self._chain = _Chain(suite, secret, sealing=True)
        self._limits = limits
        self._lock = threading.Lock()
        self._count = 0  # records under this key
        self._bytes = 0

    def seal(self, place: tuple[bytes, int, int], total: int, plain: Any, out: Any) -> None:
        """Seal a record.

        Args:
            place: Communicator (8 bytes), tag, and number in the stream.
            total: Bytes of the whole message.
            plain: (n,) uint8, the record.
            out: (n + OVERHEAD,) uint8.
        """
        with self._lock:
            self._bytes += plain.size
            if self._count >= self._limits.records or self._bytes > self._limits.nbytes:
                self._chain.advance()
                self._count, self._bytes = 0, plain.size
            count = self._count
            self._count += 1
            epoch = self._chain.epoch
            key = self._chain.keys[epoch]
        HEADER.pack_into(out, 0, epoch, count, total)
        key.run(NUMBERS.pack(epoch, count), PLACE.pack(*place, total), plain, out[HEAD:])


class Receiver:
    """Opens records of one rank.

    Args:
        suite: The cipher.
        secret: Of this direction.
        peer: The rank, for messages.
    """

    def __init__(self, suite: str, secret: bytes, peer: int) -> None:
        self._chain = _Chain(suite, secret, sealing=False)
        self._peer = peer
        self._lock = threading.Lock()

    def total(self, sealed: Any) -> int:
        """The length of the whole message, as the first record claims it; `open` verifies it."""
        if sealed.size < OVERHEAD:
            raise forged(self._peer)
        _, _, total = HEADER.unpack_from(sealed)
        return int(total)

    def open(self, place: tuple[bytes, int, int], total: int, sealed: Any, out: Any) -> None:
        """Open a record.

        Args:
            place: As the sender's.
            total: As the sender's.
            sealed: (n + OVERHEAD,) uint8.
            out: (n,) uint8.

        Raises:
            SecurityError: It is not the record that belongs there.
        """
        if sealed.size != out.size + OVERHEAD:
            raise forged(self._peer)
        epoch, count, claimed = HEADER.unpack_from(sealed)
        chain = self._chain.at(epoch)
        key = chain.keys.get(epoch)
        nonce, aad = NUMBERS.pack(epoch, count), PLACE.pack(*place, total)
        if key is None or claimed != total or not key.run(nonce, aad, sealed[HEAD:], out):
            raise forged(self._peer)
        if epoch > self._chain.epoch:  # only a genuine record ends a key
            with self._lock:
                if chain.epoch > self._chain.epoch:
                    self._chain = chain
