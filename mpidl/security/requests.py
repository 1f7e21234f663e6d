"""New keys, and the request for their certificates: public keys, signed with one of the new keys.

A private key never leaves the machine that made it; an authority sees requests only.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from mpidl.security import jws, keystore
from mpidl.security.certificates import MOST_HOSTS, Key
from mpidl.security.keystore import PrivateKey

TYPE = "mpidl-request+jwt"
MOST_REQUEST = 8 << 10
# Roles of certificates, and the files of their keys
CERTIFICATES = (
    "certificate",
    "tls-certificate",
    "signing-certificate",
    "sealing-certificate",
    "submit-certificate",
)
KEY_FILES = ("key.pem", "tls.pem", "signing.pem", "sealing.pem", "submit.pem")

PublicPoint = Annotated[str, msgspec.Meta(pattern=r"\A(?:0[23][0-9a-f]{64})?\Z")]
PublicKey = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
PublicKeyOrNone = Annotated[str, msgspec.Meta(pattern=r"\A(?:[0-9a-f]{64})?\Z")]


class Request(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """What a holder asks an authority for.

    Attributes:
        kind: What it is.
        name: Its name.
        key: Public Ed25519 key in hexadecimal; it signs the request.
        tls: Public P-256 key, or empty.
        signing: Public P-256 key, or empty.
        sealing: Public X25519 key, or empty.
        submit: Public Ed25519 key that is to issue certificates of jobs, or empty.
        hosts: Names and addresses of a server.
        tokens: Whether it is to sign tokens.
    """

    kind: Literal["person", "service", "node"]
    name: Annotated[str, msgspec.Meta(max_length=64)]
    key: PublicKey
    tls: PublicPoint = ""
    signing: PublicPoint = ""
    sealing: PublicKeyOrNone = ""
    submit: PublicKeyOrNone = ""
    hosts: Annotated[
        tuple[Annotated[str, msgspec.Meta(max_length=253)], ...],
        msgspec.Meta(max_length=MOST_HOSTS),
    ] = ()
    tokens: bool = False

    def public(self) -> dict[str, Key]:
        """The public keys: role of the certificate -> key.

        Raises:
            ValueError: One is no key.
        """
        wanted: tuple[tuple[type[Key], str], ...] = (
            (Ed25519PublicKey, self.key),
            (EllipticCurvePublicKey, self.tls),
            (EllipticCurvePublicKey, self.signing),
            (X25519PublicKey, self.sealing),
            (Ed25519PublicKey, self.submit),
        )
        found = zip(CERTIFICATES, wanted, strict=True)
        return {role: public_key(kind, text) for role, (kind, text) in found if text}


@dataclass(frozen=True)
class Keys:
    """New private keys of one holder.

    Attributes:
        key: Signs and logs in.
        tls: Speaks TLS with programs that know no Ed25519; jobs have none.
        signing: Signs for programs that verify no Ed25519; nodes have none.
        sealing: Opens what is sealed for it; nodes have none.
        submit: Issues the certificates of its jobs, if it submits any.
    """

    key: Ed25519PrivateKey = field(repr=False)
    tls: EllipticCurvePrivateKey | None = field(repr=False)
    signing: EllipticCurvePrivateKey | None = field(repr=False)
    sealing: X25519PrivateKey | None = field(repr=False)
    submit: Ed25519PrivateKey | None = field(repr=False)

    @classmethod
    def generate(cls, kind: str, *, submits: bool = False) -> Keys:
        """Make new keys."""
        sealing = X25519PrivateKey.generate() if kind != "node" else None
        submit = Ed25519PrivateKey.generate() if submits else None
        tls = generate_private_key(SECP256R1()) if kind != "job" else None
        signing = generate_private_key(SECP256R1()) if kind != "node" else None
        return cls(Ed25519PrivateKey.generate(), tls, signing, sealing, submit)

    def save(self, folder: Path, passphrase: bytes | None) -> None:
        """Write them to their folder, which must hold none (`check_empty`).

        Raises:
            OSError: The file system refuses.
        """
        keystore.make_folder(folder)
        for name, key in self._files():
            keystore.write_private(folder / name, keystore.dump_key(key, passphrase))

    def _files(self) -> list[tuple[str, keystore.PrivateKey]]:
        keys = (self.key, self.tls, self.signing, self.sealing, self.submit)
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
            "key": public_hex(self.key),
            "tls": public_hex(self.tls),
            "signing": public_hex(self.signing),
            "sealing": public_hex(self.sealing),
            "submit": public_hex(self.submit),
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
        key = request.public()["certificate"]
    except (ValueError, RecursionError) as error:
        raise jws.malformed(where) from error
    assert isinstance(key, Ed25519PublicKey)
    message.verify(key)
    return request


def public_hex(key: PrivateKey | Key | None) -> str:
    """A public key, or that of a private key, in hexadecimal; empty for none."""
    if key is None:
        return ""
    public = key.public_key() if isinstance(key, PrivateKey) else key
    if isinstance(public, EllipticCurvePublicKey):
        return public.public_bytes(Encoding.X962, PublicFormat.CompressedPoint).hex()
    return public.public_bytes_raw().hex()


def public_key(kind: type[Key], text: str) -> Key:
    """A public key from hexadecimal.

    Raises:
        ValueError: It is none of that kind.
    """
    content = bytes.fromhex(text)
    if issubclass(kind, EllipticCurvePublicKey):
        return EllipticCurvePublicKey.from_encoded_point(SECP256R1(), content)
    return kind.from_public_bytes(content)
