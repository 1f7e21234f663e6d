"""Identities of sealed files, made by the library itself."""

from __future__ import annotations

import datetime
import os
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

PEM = serialization.Encoding.PEM


def make_identity(folder: Path, name: str, *, passphrase: bytes = b"", days: int = 1) -> Path:
    """`folder`/NAME with a sealing key and its certificate, valid from `days` - 1 days ago."""
    own = folder / name
    own.mkdir(parents=True)
    key, issuer = X25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    start = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days - 1, seconds=-5)
    builder = x509.CertificateBuilder(subject, subject, key.public_key(), 1)
    builder = builder.not_valid_before(start).not_valid_after(start + datetime.timedelta(hours=1))
    (own / "sealing-certificate.pem").write_bytes(builder.sign(issuer, None).public_bytes(PEM))
    how: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if passphrase:
        how = serialization.BestAvailableEncryption(passphrase)
    write_private(
        own / "sealing.pem", key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, how)
    )
    return own


def write_private(path: Path, content: bytes) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "wb") as file:
        file.write(content)
