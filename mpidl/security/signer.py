"""Who signs: a private key with its certificates, loaded from files that nobody else can read."""

from __future__ import annotations

import getpass
import hashlib
import os
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from mpidl.errors import ConfigError, SecurityError
from mpidl.security.envelope import Envelope, encode_for_signing
from mpidl.security.identity import MATCH, key_folder, load_certificates
from mpidl.security.keystore import load_key
from mpidl.settings import JOB_CERTIFICATE, KEYS

PrivateKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey
PublicKey = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey
# Pairs (key, certificates) of an identity's folder; the first is the kind that others verify too
PAIRS = (("signing.pem", "signing-certificate.pem"), ("key.pem", "certificate.pem"))
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


def user() -> str:
    """The name of the user of the operating system."""
    with suppress(KeyError, OSError):
        return getpass.getuser()
    return str(os.getuid())


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


def find_folder(identity: str) -> Path:
    """The folder of who acts in this process.

    Args:
        identity: A folder or the name of an identity; empty: the job's, else that with the user's
            name.
    """
    named = identity or JOB_CERTIFICATE.value or user()
    return Path(named) if Path(named).is_dir() else key_folder(named)


def load_signer(identity: str) -> Signer:
    """The signer that a setting or an argument names.

    Args:
        identity: A folder or the name of an identity (`mpidl.security.identity`), or the PEM file
            of a private key; empty: the job's, else that with the user's name.

    Raises:
        ConfigError: There is none.
        SecurityError: Others can read the key, it cannot be opened, or is of no kind that signs.
        DataError: A file cannot be read.
    """
    path = Path(identity or JOB_CERTIFICATE.value or user())
    if path.is_file():
        return _load(path, path.with_name(f"{path.stem}-certificate.pem"), path.stem)
    folder = find_folder(identity)
    for key, certificates in PAIRS:
        if (folder / key).is_file():
            return _load(folder / key, folder / certificates, folder.name)
    raise ConfigError(
        "there is no identity of that name, and no such key file",
        where=str(path),
        remedy=f"set security.identity to a PEM file, or to a folder in {KEYS.value} with "
        f"{PAIRS[0][0]}",
    )


def _load(path: Path, certificates: Path, name: str) -> Signer:
    key = load_key(path)
    if not is_supported(key):
        raise SecurityError(
            "this kind of key does not sign",
            where=str(path),
            remedy="use an EC key (P-256, P-384, P-521) or Ed25519",
        )
    assert isinstance(key, PrivateKey)
    chain = load_certificates(certificates) if certificates.is_file() else ()
    if chain and chain[0].public_key() != key.public_key():
        raise SecurityError(
            "is not the certificate of its key", where=str(certificates), remedy=MATCH
        )
    if len(chain) > 1 and chain[-1].issuer == chain[-1].subject:
        chain = chain[:-1]  # verifiers have the root, or do not trust it
    return Signer(key, chain, name)
