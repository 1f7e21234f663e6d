"""Who signs: a private key with its certificates, loaded from files that nobody else can read."""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)

from mpidl.errors import ConfigError, SecurityError
from mpidl.files import reading
from mpidl.security.envelope import Envelope, encode_for_signing
from mpidl.settings import KEYS, PASSPHRASE_FILE

PrivateKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey
PublicKey = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey
# Pairs (key, certificates) of an identity's folder; the first is the kind that others verify too
PAIRS = (("signing.pem", "signing-certificate.pem"), ("key.pem", "certificate.pem"))
MOST_KEY_BYTES = 1 << 16
_HASHES = {"secp256r1": hashes.SHA256(), "secp384r1": hashes.SHA384(), "secp521r1": hashes.SHA512()}


@dataclass(frozen=True)
class Signer:
    """A private key and what tells others whose it is.

    Attributes:
        key: ECDSA over P-256, P-384 or P-521, which model-signing verifies too; or Ed25519.
        chain: Certificates, that of `key` first, without the root; empty: the key alone is trusted.
        name: For messages.
    """

    key: PrivateKey = field(repr=False)
    chain: tuple[x509.Certificate, ...] = ()
    name: str = ""

    def sign(self, payload: bytes, payload_type: str) -> Envelope:
        """`payload` in a signed envelope.

        Args:
            payload: Any bytes.
            payload_type: Their media type, which is signed too.
        """
        message = encode_for_signing(payload, payload_type)
        if isinstance(self.key, ed25519.Ed25519PrivateKey):
            signature = self.key.sign(message)
        else:
            signature = self.key.sign(message, ec.ECDSA(_HASHES[self.key.curve.name]))
        chain = tuple(one.public_bytes(Encoding.DER) for one in self.chain)
        hint = "" if chain else key_hint(self.key.public_key())
        return Envelope(payload, payload_type, signature, hint, chain)


def key_hint(key: PublicKey) -> str:
    """The SHA-256 of a public key's PEM text, in hexadecimal: its name in bundles."""
    pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(pem).hexdigest()


def is_supported(key: object) -> bool:
    """Whether a key, public or private, is of a kind that signs here."""
    if isinstance(key, (ec.EllipticCurvePrivateKey, ec.EllipticCurvePublicKey)):
        return key.curve.name in _HASHES
    return isinstance(key, (ed25519.Ed25519PrivateKey, ed25519.Ed25519PublicKey))


def is_signature(key: PublicKey, signature: bytes, message: bytes) -> bool:
    """Whether `signature` of `message` was made with the private part of `key`."""
    try:
        if isinstance(key, ed25519.Ed25519PublicKey):
            key.verify(signature, message)
        else:
            key.verify(signature, message, ec.ECDSA(_HASHES[key.curve.name]))
    except InvalidSignature:
        return False
    return True


def load_signer(identity: str) -> Signer:
    """The signer that a setting or an argument names.

    Args:
        identity: A folder or the name of an identity (`MPIDL_KEYS`, see `PAIRS`), or the PEM file
            of a private key.

    Raises:
        ConfigError: There is none.
        SecurityError: Others can read the key, it cannot be opened, or is of no kind that signs.
    """
    path = Path(identity)
    if path.is_file():
        return _load(path, path.with_name(f"{path.stem}-certificate.pem"), path.stem)
    folder = path if path.is_dir() else Path(KEYS.value).expanduser() / identity
    for key, certificates in PAIRS:
        if (folder / key).is_file():
            return _load(folder / key, folder / certificates, folder.name)
    raise ConfigError(
        "there is no identity of that name, and no such key file",
        where=identity,
        remedy=f"name a PEM file, or a folder in {KEYS.value} with {PAIRS[0][0]}",
    )


def _load(path: Path, certificates: Path, name: str) -> Signer:
    raw = read_private(path)
    try:
        key = load_pem_private_key(raw, passphrase() if b"ENCRYPTED" in raw else None)
    except (ValueError, TypeError) as error:
        # the text of the library could quote what it has read
        raise _unusable(path, "the private key cannot be opened") from error
    if not is_supported(key):
        raise _unusable(path, "this kind of key does not sign here")
    assert isinstance(key, PrivateKey)
    chain: tuple[x509.Certificate, ...] = ()
    if certificates.is_file():
        with reading(certificates):
            text = certificates.read_bytes()
        try:
            chain = tuple(x509.load_pem_x509_certificates(text[:MOST_KEY_BYTES]))
        except ValueError as error:
            raise _unusable(certificates, "holds no certificates") from error
        if chain[0].public_key() != key.public_key():
            raise _unusable(certificates, f"is not the certificate of {path.name}")
        if len(chain) > 1 and chain[-1].issuer == chain[-1].subject:
            chain = chain[:-1]  # verifiers have the root, or do not trust it
    return Signer(key, chain, name)


def read_private(path: Path) -> bytes:
    """A small file that only its owner can read.

    Raises:
        SecurityError: It is a link, belongs to somebody else, or others have access to it.
        DataError: It cannot be read.
    """
    with reading(path):
        try:
            handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            if path.is_symlink():
                raise _unusable(path, "is a link, where a file of your own is needed") from error
            raise
        with open(handle, "rb") as file:
            state = os.fstat(file.fileno())
            shared = stat.S_IMODE(state.st_mode) & 0o077
            if shared or state.st_uid != os.geteuid() or not stat.S_ISREG(state.st_mode):
                raise SecurityError(
                    "others have access to this file, or it is not yours",
                    where=str(path),
                    remedy="chmod 600 it; if others could have read it, make a new key",
                )
            return file.read(MOST_KEY_BYTES)


def passphrase() -> bytes:
    """What opens encrypted keys, from the file that `MPIDL_PASSPHRASE_FILE` names.

    Raises:
        SecurityError: There is none.
    """
    if not PASSPHRASE_FILE.value:
        raise SecurityError(
            "the private key is encrypted, and no passphrase is given",
            remedy=f"write it to a file of mode 600 and name that in {PASSPHRASE_FILE.name}",
        )
    return read_private(Path(PASSPHRASE_FILE.value)).rstrip(b"\r\n")


def _unusable(path: Path, what: str) -> SecurityError:
    remedy = "use an EC key (P-256, P-384, P-521) or Ed25519, PEM (PKCS #8), and its passphrase"
    return SecurityError(what, where=str(path), remedy=remedy)
