"""The few values of DER (ITU-T X.690) that are put together here."""

from __future__ import annotations

_ED25519 = bytes.fromhex("300506032b6570")  # RFC 8410: an AlgorithmIdentifier
_NO_SPARE_BITS = b"\0"


def tlv(tag: int, content: bytes) -> bytes:
    """A value: tag, length, content.

    Args:
        tag: One byte.
        content: Less than 16 MiB.
    """
    count = len(content)
    if count < 128:
        return bytes([tag, count]) + content
    length = count.to_bytes((count.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(length)]) + length + content


def integer(number: int) -> bytes:
    """A whole number that is not negative."""
    return tlv(2, number.to_bytes(number.bit_length() // 8 + 1, "big"))


def signed(content: bytes, signature: bytes) -> bytes:
    """A certificate or a list: its content, signed with Ed25519, in the one spelling of DER.

    `cryptography` also takes a signature that says to have spare bits, where those are 0: another
    file with the same signature.
    """
    return tlv(0x30, content + _ED25519 + tlv(3, _NO_SPARE_BITS + signature))
