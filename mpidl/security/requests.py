"""New keys, and the request for their certificates: public keys, signed with one of the new keys.

A private key never leaves the machine that made it; an authority sees requests only.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from mpidl.security import jws, keystore
from mpidl.security.certificates import MOST_HOSTS

TYPE = "mpidl-request+jwt"
MOST_REQUEST = 8 << 10
KEY_FILES = ("key.pem", "sealing.pem", "submit.pem")

PublicKey = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
PublicKeyOrNone = Annotated[str, msgspec.Meta(pattern=r"\A(?:[0-9a-f]{64})?\Z")]


class Request(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """What a holder asks an authority for.

    Attributes:
        kind: What it is.
        name: Its name.
        key: Public Ed25519 key in hexadecimal; it signs the request.
        sealing: Public X25519 key, or empty.
        submit: Public Ed25519 key that is to issue certificates of jobs, or empty.
        hosts: Names and addresses of a server.
        tokens: Whether it is to sign tokens.
    """

    kind: Literal["person", "service", "node"]
    name: Annotated[str, msgspec.Meta(max_length=64)]
    key: PublicKey
    sealing: PublicKeyOrNone = ""
    submit: PublicKeyOrNone = ""
    hosts: Annotated[
        tuple[Annotated[str, msgspec.Meta(max_length=253)], ...],
        msgspec.Meta(max_length=MOST_HOSTS),
    ] = ()
    tokens: bool = False


@dataclass(frozen=True)
class Keys:
    """New private keys of one holder.

    Attributes:
        key: Signs and logs in.
        sealing: Opens what is sealed for it; nodes have none.
        submit: Issues the certificates of its jobs, if it submits any.
    """

    key: Ed25519PrivateKey = field(repr=False)
    sealing: X25519PrivateKey | None = field(repr=False)
    submit: Ed25519PrivateKey | None = field(repr=False)

    @classmethod
    def generate(cls, kind: str, *, submits: bool = False) -> Keys:
        """Make new keys."""
        sealing = X25519PrivateKey.generate() if kind != "node" else None
        submit = Ed25519PrivateKey.generate() if submits else None
        return cls(Ed25519PrivateKey.generate(), sealing, submit)

    def save(self, folder: Path, passphrase: bytes | None) -> None:
        """Write them to their folder, which must hold none (`check_empty`).

        Raises:
            OSError: The file system refuses.
        """
        keystore.make_folder(folder)
        for name, key in self._files():
            keystore.write_private(folder / name, keystore.dump_key(key, passphrase))

    def _files(self) -> list[tuple[str, keystore.PrivateKey]]:
        keys = (self.key, self.sealing, self.submit)
        found = zip(KEY_FILES, keys, strict=True)
        return [(name, key) for name, key in found if key is not None]

    def request(
        self, kind: str, name: str, *, hosts: tuple[str, ...] = (), tokens: bool = False
    ) -> str:
        """The signed request for their certificates.

        Args:
            kind: "person", "service" or "node".
            name: Of their holder.
            hosts: Names and addresses of a server.
            tokens: Whether the holder is to sign tokens.
        """
        asked = {
            "kind": kind,
            "name": name,
            "key": public_hex(self.key.public_key()),
            "sealing": public_hex(self.sealing.public_key()) if self.sealing else "",
            "submit": public_hex(self.submit.public_key()) if self.submit else "",
            "hosts": hosts,
            "tokens": tokens,
        }
        content = msgspec.json.encode(msgspec.convert(asked, Request))
        return jws.sign(TYPE, content, self.key)


@dataclass(frozen=True)
class Asked:
    """New keys, and what is asked for them.

    Attributes:
        keys: The keys.
        request: For their certificates.
        passphrase: Encrypts the keys; None: they are not encrypted.
        lifetime: Of the certificates (default: the usual one of each kind).
        replaces: Whether they take the place of valid ones.
    """

    keys: Keys
    request: Request
    passphrase: bytes | None = field(repr=False)
    lifetime: timedelta | None = None
    replaces: bool = False


def read_request(content: bytes, where: str) -> Request:
    """A request, if it is signed with the key that it asks for.

    Raises:
        SecurityError: It is malformed, or signed with another key.
    """
    message = jws.parse(content.strip(), TYPE, where)
    try:
        request = msgspec.json.decode(message.payload, type=Request)
        key = ed25519(request.key)
    except (ValueError, RecursionError) as error:
        raise jws.malformed(where) from error
    message.verify(key)
    return request


def ed25519(text: str) -> Ed25519PublicKey:
    """A public key from hexadecimal.

    Raises:
        ValueError: It is none.
    """
    return Ed25519PublicKey.from_public_bytes(bytes.fromhex(text))


def public_hex(key: object) -> str:
    """A public key in hexadecimal; empty for one of another kind."""
    if not isinstance(key, Ed25519PublicKey | X25519PublicKey):
        return ""
    return key.public_bytes_raw().hex()
