"""Authenticated encryption of messages: AES-256-GCM and ChaCha20-Poly1305 (RFC 5116, RFC 8439).

Two libraries do it: OpenSSL's EVP in C (`kernels/python/seal.c`, outside of Python's lock), and the
library `cryptography`, whose own OpenSSL may be a newer one. The faster one here is measured once;
the bytes are the same.
"""

from __future__ import annotations

import platform
import time
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mpidl.errors import SecurityError
from mpidl.extras import load_extra

try:
    from mpidl._kernels.seal import Key as _Compiled
except ImportError:  # built without OpenSSL's headers, or its library is not here
    _Compiled = None

KEY, NONCE, TAG = 32, 12, 16  # bytes
AES, CHACHA = "aes-256-gcm", "chacha20-poly1305"
SUITES = (AES, CHACHA)  # in the order in which they are preferred
PROBE = 1 << 18  # bytes


class Key(Protocol):
    """A key for one direction of messages."""

    def run(self, nonce: bytes, aad: bytes, given: Any, out: Any) -> bool:
        """Seal or open a message.

        Args:
            nonce: (12,) bytes, never twice for the same key.
            aad: Bytes that are authenticated, but do not travel.
            given: The message; a sealed one ends with its tag of 16 bytes.
            out: Where the result goes, 16 bytes longer or shorter; wiped where it is not genuine.

        Returns:
            Whether the message is genuine.
        """


class _Foreign:
    """A `Key` of the library `cryptography`."""

    def __init__(self, suite: str, secret: bytes, sealing: bool) -> None:
        aead = load_extra("cryptography.hazmat.primitives.ciphers.aead", "encryption")
        kind = {AES: aead.AESGCM, CHACHA: aead.ChaCha20Poly1305}[suite]
        cipher = kind(secret)
        self._work = cipher.encrypt_into if sealing else cipher.decrypt_into
        self._invalid = load_extra("cryptography.exceptions", "encryption").InvalidTag

    def run(self, nonce: bytes, aad: bytes, given: Any, out: Any) -> bool:
        """As of `Key`."""
        try:
            self._work(nonce, given, aad, out)
        except self._invalid:
            np.frombuffer(out, np.uint8)[:] = 0
            return False
        return True


def make_key(suite: str, secret: bytes, *, sealing: bool) -> Key:
    """A key by the faster library.

    Args:
        suite: One of `SUITES`.
        secret: 32 bytes.
        sealing: Seal, or open.
    """
    if suite not in SUITES or len(secret) != KEY:
        raise SecurityError(f"no key for {suite!r}", remedy=f"choose one of {', '.join(SUITES)}")
    return _fastest(suite)(suite, secret, sealing)  # type: ignore[no-any-return]


def available() -> list[Any]:
    """The libraries that are here: makers of keys, called with (suite, secret, sealing)."""
    return [kind for kind in (_Compiled, _Foreign) if kind is not None]


@cache
def _fastest(suite: str) -> Any:
    message, out = np.zeros(PROBE, np.uint8), np.empty(PROBE + TAG, np.uint8)

    def seconds(kind: Any) -> float:
        key, taken = kind(suite, bytes(KEY), True), []
        for turn in range(4):
            start = time.perf_counter()
            key.run(turn.to_bytes(NONCE, "big"), b"", message, out)
            taken.append(time.perf_counter() - start)
        return min(taken)

    kinds = available()
    return min(kinds, key=seconds) if len(kinds) > 1 else kinds[0]


@cache
def preferred_suites() -> tuple[str, ...]:
    """The suites, the one first that this processor is good at: AES only with instructions for it.

    AES without them is slow, and its tables leak through caches.
    """
    if platform.system() == "Linux":
        words = Path("/proc/cpuinfo").read_text(errors="replace").split()
        return SUITES if "aes" in words else (CHACHA,)
    return SUITES if platform.machine() in ("arm64", "aarch64") else (CHACHA,)
