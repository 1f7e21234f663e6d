"""How the ranks of a job come to secrets: signed Diffie-Hellman among all of them.

As in TLS 1.3 and SIGMA (Krawczyk, 2003), for a group: every rank tells all others a fresh X25519
key, a random number, its certificates, and who it is (`Hello`). All hellos together are the
transcript; every rank signs its hash with the key of its certificate. So each knows that all have
seen the same hellos: an exchanged key, a removed cipher, a rank that says it is another one, a
hello of another job or of earlier shows. Each pair of ranks then derives two secrets, one a
direction, from its X25519 product by HKDF-SHA-256, salted with the transcript.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from msgspec import Meta

from mpidl.errors import SecurityError
from mpidl.extras import load_extra
from mpidl.security.aead import AES, CHACHA, SUITES, preferred_suites

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

VERSION = 1
MOST_BYTES = 32 << 10  # of a hello
MOST_RANKS = 1 << 20
SECRET = 32  # bytes
SIGNATURE = 64  # bytes
PURPOSE = "encrypted ranks"
REMEDY = (
    "start all ranks of the job together with the same certificate of the job; if that does not "
    "help, somebody changes what the ranks send each other"
)
Bytes32 = Annotated[bytes, Meta(min_length=32, max_length=32)]
Certificate = Annotated[bytes, Meta(min_length=1, max_length=8 << 10)]
Rank = Annotated[int, Meta(ge=0, lt=MOST_RANKS)]


class Hello(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a rank says first.

    Attributes:
        version: Of this protocol.
        job: Name of the job.
        rank: Who it is.
        size: Ranks of the job.
        node: Names the node it is on.
        scope: What is encrypted: "nodes" or "all".
        suites: Ciphers it can use, the best first.
        binding: SHA-256 of what all ranks must agree on, as the configuration.
        random: Fresh.
        share: Its fresh X25519 key.
        chain: Its certificates (DER), its own first, without the root.
    """

    version: Annotated[int, Meta(ge=1, le=255)]
    job: Annotated[str, Meta(min_length=1, max_length=200)]
    rank: Rank
    size: Annotated[int, Meta(ge=1, le=MOST_RANKS)]
    node: Annotated[str, Meta(max_length=100)]
    scope: Annotated[str, Meta(max_length=10)]
    suites: Annotated[tuple[Annotated[str, Meta(max_length=40)], ...], Meta(max_length=8)]
    binding: Bytes32
    random: Bytes32
    share: Bytes32
    chain: Annotated[tuple[Certificate, ...], Meta(min_length=1, max_length=4)]


@dataclass(frozen=True)
class Credentials:
    """Who this rank is, and whom it believes.

    Attributes:
        chain: Its certificates, its own first, without the root.
        key: The private key of the first.
        job: The job that they are for; that of every other rank has to be the same.
        verify: Returns the job that a chain of certificates is for; raises SecurityError for one
            that is not valid.
    """

    chain: tuple[x509.Certificate, ...]
    key: Ed25519PrivateKey = field(repr=False)
    job: str
    verify: Callable[[Sequence[x509.Certificate]], str]


@dataclass(frozen=True)
class Place:
    """Where a rank stands.

    Attributes:
        rank: Who it is.
        size: Ranks of the job.
        node: Names the node it is on.
        scope: What is encrypted.
        binding: What all ranks must agree on, in bytes.
    """

    rank: int
    size: int
    node: str = ""
    scope: str = "all"
    binding: bytes = b""


class Handshake:
    """One rank's part: `hello`, then `sign` what all have said, then `finish`.

    Args:
        credentials: Who this rank is.
        place: Where it stands.
    """

    def __init__(self, credentials: Credentials, place: Place) -> None:
        x25519 = load_extra("cryptography.hazmat.primitives.asymmetric.x25519", PURPOSE)
        self.credentials = credentials
        self.place = place
        self._share = x25519.X25519PrivateKey.generate()
        serialization = load_extra("cryptography.hazmat.primitives.serialization", PURPOSE)
        self.hello = msgspec.msgpack.encode(
            Hello(
                VERSION,
                credentials.job,
                place.rank,
                place.size,
                place.node,
                place.scope,
                preferred_suites(),
                hashlib.sha256(place.binding).digest(),
                os.urandom(32),
                self._share.public_key().public_bytes_raw(),
                tuple(one.public_bytes(serialization.Encoding.DER) for one in credentials.chain),
            )
        )
        self._hellos: list[Hello] = []
        self._transcript = b""

    def sign(self, hellos: Sequence[bytes]) -> bytes:
        """Check what all ranks have said.

        Args:
            hellos: Of all ranks, in rank order.

        Returns:
            This rank's signature, for all others.

        Raises:
            SecurityError: One of them is not what it should be.
        """
        place = self.place
        if len(hellos) != place.size or hellos[place.rank] != self.hello:
            raise refused(place.rank, "its own hello came back changed")
        self._hellos = [_read(raw, rank) for rank, raw in enumerate(hellos)]
        mine = self._hellos[place.rank]
        for rank, hello in enumerate(self._hellos):
            _compare(hello, mine, rank)
        for values in ([one.random for one in self._hellos], [one.share for one in self._hellos]):
            if len(set(values)) != len(values):
                raise refused(place.rank, "two ranks have sent the same fresh number")
        digest = hashlib.sha256(b"mpidl ranks transcript 1")
        for raw in hellos:
            digest.update(len(raw).to_bytes(8, "big") + raw)
        self._transcript = digest.digest()
        return self.credentials.key.sign(_signed(self._transcript, place.rank, place.size))

    def finish(self, signatures: Sequence[bytes]) -> Secrets:
        """Check the signatures of all ranks.

        Args:
            signatures: Of all ranks, in rank order.

        Raises:
            SecurityError: A certificate or a signature is not valid.
        """
        if len(signatures) != self.place.size or not self._transcript:
            raise refused(self.place.rank, "signatures are missing")
        x509 = load_extra("cryptography.x509", PURPOSE)
        valid: dict[tuple[bytes, ...], Any] = {}  # ranks of a job may share a certificate
        for rank, (hello, signature) in enumerate(zip(self._hellos, signatures, strict=True)):
            if hello.chain not in valid:
                valid[hello.chain] = self._check_chain(x509, hello, rank)
            _check_signature(
                valid[hello.chain], signature, _signed(self._transcript, rank, hello.size), rank
            )
        return Secrets(self._share, self._hellos, self._transcript, self.place.rank)

    def _check_chain(self, x509: Any, hello: Hello, rank: int) -> Any:
        """The public key of a rank's valid certificate."""
        ed25519 = load_extra("cryptography.hazmat.primitives.asymmetric.ed25519", PURPOSE)
        try:
            chain = [x509.load_der_x509_certificate(raw) for raw in hello.chain]
            key = chain[0].public_key()
        except Exception as error:  # whatever the parser of certificates raises
            raise refused(rank, "its certificate cannot be read") from error
        job = self.credentials.verify(chain)
        if job != hello.job:
            raise refused(rank, "its certificate is for another job")
        if not isinstance(key, ed25519.Ed25519PublicKey):
            raise refused(rank, "its certificate has another kind of key")
        return key


class Secrets:
    """What a rank has in common with each other rank.

    Attributes:
        suite: The cipher.
        nodes: The node of each rank, as all have signed it.
    """

    def __init__(self, share: Any, hellos: list[Hello], transcript: bytes, rank: int) -> None:
        self._share = share
        self._shares = [hello.share for hello in hellos]
        self._transcript = transcript
        self._rank = rank
        self.nodes = tuple(hello.node for hello in hellos)
        common = [suite for suite in SUITES if all(suite in hello.suites for hello in hellos)]
        self.suite = common[0]

    def pair(self, peer: int) -> tuple[bytes, bytes]:
        """The secrets for messages to, and from, another rank.

        Raises:
            SecurityError: Its key is a degenerate one.
        """
        x25519 = load_extra("cryptography.hazmat.primitives.asymmetric.x25519", PURPOSE)
        hkdf = load_extra("cryptography.hazmat.primitives.kdf.hkdf", PURPOSE)
        hashes = load_extra("cryptography.hazmat.primitives.hashes", PURPOSE)
        try:
            other = x25519.X25519PublicKey.from_public_bytes(self._shares[peer])
            product = self._share.exchange(other)
        except ValueError as error:
            raise refused(peer, "its key is degenerate") from error

        def derive(source: int, dest: int) -> bytes:
            info = f"mpidl ranks 1 {self.suite} from {source} to {dest}".encode()
            kdf = hkdf.HKDF(hashes.SHA256(), SECRET, self._transcript, info)
            secret: bytes = kdf.derive(product)
            return secret

        return derive(self._rank, peer), derive(peer, self._rank)


def refused(rank: int, why: str) -> SecurityError:
    """The error for a rank that is not believed."""
    return SecurityError(f"rank {rank} is not trusted: {why}", where="handshake", remedy=REMEDY)


def _read(raw: bytes, rank: int) -> Hello:
    if len(raw) > MOST_BYTES:
        raise refused(rank, "its hello is too long")
    try:
        return msgspec.msgpack.decode(raw, type=Hello)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise refused(rank, "its hello cannot be read") from error


def _compare(hello: Hello, mine: Hello, rank: int) -> None:
    """Refuse a rank that stands elsewhere, or wants something else, than this one."""
    if hello.rank != rank:
        raise refused(rank, f"it says that it is rank {hello.rank}")
    for what, its, own in (
        ("another version of the protocol", hello.version, mine.version),
        ("another job", hello.job, mine.job),
        ("another number of ranks", hello.size, mine.size),
        ("another security.scope", hello.scope, mine.scope),
        ("another configuration", hello.binding, mine.binding),
    ):
        if its != own:
            raise refused(rank, f"it has {what}")
    if CHACHA not in hello.suites or not set(hello.suites) <= {AES, CHACHA}:
        raise refused(rank, "it has no cipher in common with this one")


def _signed(transcript: bytes, rank: int, size: int) -> bytes:
    """What a rank signs."""
    return f"mpidl ranks signature 1, rank {rank} of {size}\0".encode() + transcript


def _check_signature(key: Any, signature: bytes, message: bytes, rank: int) -> None:
    invalid = load_extra("cryptography.exceptions", PURPOSE).InvalidSignature
    try:
        key.verify(bytes(signature), message)
    except invalid as error:
        raise refused(rank, "its signature is not genuine") from error
