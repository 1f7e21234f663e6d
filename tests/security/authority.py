"""Keys and certificates for tests: an authority, and whom it vouches for."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

EXAMPLES = int(os.environ.get("MPIDL_TEST_EXAMPLES", "100"))  # of each fuzz test
START = datetime.now(UTC).replace(microsecond=0) - timedelta(days=1)


def write_private(path: Path, content: bytes) -> Path:
    """A file that only its owner can read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(0o600)
    path.write_bytes(content)
    return path


def write_key(path: Path, key: Any) -> Path:
    """NAME.pem, and beside it NAME.pub."""
    path.with_suffix(".pub").write_bytes(
        key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return write_private(path, pem)


def new_ec(curve: ec.EllipticCurve | None = None) -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(curve or ec.SECP256R1())


class Authority:
    """An authority that issues certificates."""

    def __init__(self, name: str = "site", key: Any = None, **options: Any) -> None:
        self.key = key or ed25519.Ed25519PrivateKey.generate()
        self.certificate = self.issue(name, self.key.public_key(), issuer=name, ca=True, **options)

    def issue(
        self,
        name: str,
        public: Any,
        *,
        issuer: str | None = None,
        ca: bool = False,
        path_length: int | None = None,
        start: datetime = START,
        days: float = 30,
        signs: bool = True,
    ) -> x509.Certificate:
        own = issuer or self.certificate.subject.rfc4514_string().removeprefix("CN=")
        usage = {
            "content_commitment": False,
            "key_encipherment": False,
            "data_encipherment": False,
            "key_agreement": False,
            "encipher_only": False,
            "decipher_only": False,
        }
        builder = (
            x509.CertificateBuilder()
            .subject_name(_named(name))
            .issuer_name(_named(own))
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(start)
            .not_valid_after(start + timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca, path_length), critical=True)
            .add_extension(
                x509.KeyUsage(
                    digital_signature=signs and not ca, key_cert_sign=ca, crl_sign=ca, **usage
                ),
                critical=True,
            )
        )
        algorithm = None if isinstance(self.key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
        return builder.sign(self.key, algorithm)

    def revoke(self, *certificates: x509.Certificate) -> bytes:
        """A revocation list, PEM."""
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.certificate.subject)
            .last_update(START)
            .next_update(START + timedelta(days=30))
        )
        for one in certificates:
            entry = x509.RevokedCertificateBuilder()
            entry = entry.serial_number(one.serial_number).revocation_date(START)
            builder = builder.add_revoked_certificate(entry.build())
        algorithm = None if isinstance(self.key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
        return builder.sign(self.key, algorithm).public_bytes(Encoding.PEM)

    def write(self, path: Path) -> Path:
        path.write_bytes(self.certificate.public_bytes(Encoding.PEM))
        return path


def write_identity(folder: Path, authority: Authority, name: str, key: Any = None) -> Path:
    """An identity's folder with an EC signing key, as of `load_signer`."""
    key = key or new_ec()
    folder.mkdir(parents=True, exist_ok=True)
    write_key(folder / "signing.pem", key)
    chain = [authority.issue(name, key.public_key())]
    (folder / "signing-certificate.pem").write_bytes(
        b"".join(one.public_bytes(Encoding.PEM) for one in chain)
    )
    return folder


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
