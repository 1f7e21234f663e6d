"""Signed envelopes: DSSE in a Sigstore bundle (v0.3), the form that model-signing writes and reads.

What is signed is not the payload but its pre-authentication encoding, which holds the type of the
payload too (github.com/secure-systems-lab/dsse, protocol.md). Every field that is not covered by
the signature is checked or refused, so that no bit of a bundle can change unnoticed.
"""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from mpidl.errors import SecurityError

MEDIA_TYPE: Final = "application/vnd.dev.sigstore.bundle.v0.3+json"
IN_TOTO = "application/vnd.in-toto+json"
MOST_BYTES = 64 << 20  # a bundle over 300,000 files has fewer
MOST_CERTIFICATES = 8
AGAIN = "get the signature again from whoever signed, or have it signed anew (mpidl sign)"


class _Struct(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Base of the parts of a bundle."""


class _PublicKey(_Struct, frozen=True):
    hint: Annotated[str, Meta(max_length=128)]


class _Certificate(_Struct, frozen=True):
    rawBytes: Annotated[str, Meta(max_length=1 << 15)]


class _Chain(_Struct, frozen=True):
    certificates: Annotated[
        tuple[_Certificate, ...], Meta(min_length=1, max_length=MOST_CERTIFICATES)
    ]


class _Material(_Struct, frozen=True):
    publicKey: _PublicKey | None = None
    x509CertificateChain: _Chain | None = None
    tlogEntries: Annotated[list[Any], Meta(max_length=0)] | None = None


class _Signature(_Struct, frozen=True):
    sig: Annotated[str, Meta(max_length=4096)]
    keyid: Literal[""] | None = None


class _Dsse(_Struct, frozen=True):
    payload: str
    payloadType: Annotated[str, Meta(max_length=200)]
    signatures: Annotated[tuple[_Signature, ...], Meta(min_length=1, max_length=1)]


class _Bundle(_Struct, frozen=True):
    mediaType: Literal["application/vnd.dev.sigstore.bundle.v0.3+json"]
    verificationMaterial: _Material
    dsseEnvelope: _Dsse


@dataclass(frozen=True)
class Envelope:
    """A signed payload, and who says to have signed it.

    Attributes:
        payload: The bytes.
        payload_type: What they are, a media type.
        signature: Over `encode_for_signing`.
        hint: SHA-256 of the PEM text of the public key, in hexadecimal; empty with a chain.
        chain: Certificates in DER, that of the signer first; empty with a hint.
    """

    payload: bytes
    payload_type: str
    signature: bytes
    hint: str = ""
    chain: tuple[bytes, ...] = ()

    def encode(self) -> bytes:
        """The bundle, one line of JSON without its end."""
        chain = None
        if self.chain:
            chain = _Chain(tuple(_Certificate(_to_base64(one)) for one in self.chain))
        key = None if self.chain else _PublicKey(self.hint)
        bundle = _Bundle(
            MEDIA_TYPE,
            _Material(key, chain, []),
            _Dsse(
                _to_base64(self.payload),
                self.payload_type,
                (_Signature(_to_base64(self.signature), ""),),
            ),
        )
        return msgspec.json.encode(bundle)

    @staticmethod
    def decode(raw: bytes, where: str) -> Envelope:
        """The envelope of a bundle; nothing of it is verified yet.

        Args:
            raw: Its bytes, of anybody.
            where: Their file, for messages.

        Raises:
            SecurityError: It is no such bundle, or has parts that nothing covers.
        """
        if len(raw) > MOST_BYTES:
            raise _malformed(where, f"has more than {MOST_BYTES >> 20} MiB")
        try:
            json.loads(raw, object_pairs_hook=_once)
            bundle = msgspec.json.decode(raw, type=_Bundle)
            material, dsse = bundle.verificationMaterial, bundle.dsseEnvelope
            key, chain = material.publicKey, material.x509CertificateChain
            if (key is None) == (chain is None):
                raise ValueError("one of publicKey and x509CertificateChain")
            return Envelope(
                _from_base64(dsse.payload),
                dsse.payloadType,
                _from_base64(dsse.signatures[0].sig),
                key.hint if key else "",
                tuple(_from_base64(one.rawBytes) for one in chain.certificates) if chain else (),
            )
        except (ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors
            raise _malformed(where, "is no signature bundle of the form v0.3") from error


def encode_for_signing(payload: bytes, payload_type: str) -> bytes:
    """The pre-authentication encoding (PAE) of DSSE v1."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def _once(pairs: list[tuple[str, Any]]) -> None:
    """Refuse a name that comes twice: readers differ in which of the two counts.

    Raises:
        ValueError: One does.
    """
    if len({name for name, _ in pairs}) < len(pairs):
        raise ValueError("a name comes twice")


def _to_base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _from_base64(text: str) -> bytes:
    """The bytes of canonical base64.

    Raises:
        ValueError: Other characters, wrong padding, or unused bits that are not 0.
    """
    try:
        data = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError("base64") from error
    if _to_base64(data) != text:
        raise ValueError("base64 that is not canonical")
    return data


def _malformed(where: str, what: str) -> SecurityError:
    return SecurityError(what, where=where, remedy=AGAIN)
