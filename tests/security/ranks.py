"""Credentials of ranks, of plain `cryptography` objects: every rank makes the same authority."""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Sequence

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import NameOID

from mpidl.errors import SecurityError
from mpidl.security.handshake import Credentials, Handshake, Place, Secrets

ROOT = "root"


def key_of(name: str) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(name.encode()).digest())


def certify(subject: str, issuer: str = ROOT) -> x509.Certificate:
    def named(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    now = datetime.datetime.now(datetime.UTC)
    made = x509.CertificateBuilder().subject_name(named(subject)).issuer_name(named(issuer))
    made = made.serial_number(x509.random_serial_number()).public_key(key_of(subject).public_key())
    made = made.not_valid_before(now - datetime.timedelta(hours=1))
    made = made.not_valid_after(now + datetime.timedelta(hours=1))
    return made.sign(key_of(issuer), None)


def verify(chain: Sequence[x509.Certificate]) -> str:
    """The job that the first certificate names; the root has signed it."""
    try:
        key_of(ROOT).public_key().verify(chain[0].signature, chain[0].tbs_certificate_bytes)
    except InvalidSignature as error:
        raise SecurityError("not of this site") from error
    return str(chain[0].subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)


def credentials(job: str = "job-1", issuer: str = ROOT) -> Credentials:
    return Credentials((certify(job, issuer),), key_of(job), job, verify)


def greet(size: int = 3, **places: Place) -> list[Handshake]:
    """The ranks of a job at the start; `places`: what some of them say instead, as rank1=..."""
    own = [places.get(f"rank{rank}", Place(rank, size)) for rank in range(size)]
    return [Handshake(credentials(), place) for place in own]


def agree(size: int = 3) -> list[Secrets]:
    """The secrets of all ranks of a job."""
    ranks = greet(size)
    hellos = [one.hello for one in ranks]
    signatures = [one.sign(hellos) for one in ranks]
    return [one.finish(signatures) for one in ranks]
