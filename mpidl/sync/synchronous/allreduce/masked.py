"""Sums that show nothing of their terms: each rank adds masks that cancel over all ranks.

Every pair of ranks agrees on a key (X25519, HKDF), from which both draw the same mask (ChaCha20) in
every step; one adds it, the other subtracts it (Bonawitz et al., 2017, without its protocol for
ranks that drop out: a job of MPI ends with its first rank). Numbers are 32-bit integers of a common
scale, in which sums are exact, and no message shows anything but the sum once all terms are in it.
What all ranks learn besides the sum is the largest absolute value of a bucket.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpidl.collectives import Group, all_gather, all_reduce
from mpidl.collectives.schedule import all_reduce_bytes
from mpidl.compression.compressor import Compressor, Layout
from mpidl.extras import load_extra

INFO = b"mpidl masked sum 1"
KEY = 32  # bytes
CHUNK = 1 << 16  # elements that stay in the cache
Words = NDArray[np.uint32]


class MaskedSum(Compressor):
    """Sums buckets under masks; the same bytes as in the clear.

    Args:
        group: The ranks; keys are agreed on at once. Collective.

    Raises:
        ConfigError: The library is not there.
    """

    on_device = False

    def __init__(self, group: Group) -> None:
        super().__init__()
        load_extra("cryptography", "sums under masks")
        self._rank = group.rank
        self._keys = agree(group)
        self._step = 0
        self._zeros = np.zeros(CHUNK, np.uint32)
        self._mask = np.empty(CHUNK, np.uint32)

    def reduce(self, values: NDArray[Any], group: Group, key: str, layout: Layout = ()) -> None:
        """See `Compressor`; NaN or infinity on any rank makes all elements NaN."""
        peak = np.array([np.abs(values).max(initial=0.0)], np.float64)
        if not np.isfinite(peak[0]):
            peak[0] = np.inf
        all_reduce(peak, comm=group, op="max", name=key)
        self._step += 1
        if not np.isfinite(peak[0]):
            values[...] = np.nan
            return
        # the sum of all ranks' numbers stays below 2^31
        scale = (2**31 - 1) / group.size / (float(peak[0]) or 1.0)
        words = self._encode(values, scale)
        all_reduce(words, comm=group, name=key)
        self.sent += all_reduce_bytes(words.nbytes, group.size)
        np.multiply(words.view(np.int32), 1 / scale, out=values, casting="unsafe")

    def _encode(self, values: NDArray[Any], scale: float) -> Words:
        """Fixed-point numbers with all masks of this rank added."""
        streams = [(rank > self._rank, self._stream(key)) for rank, key in self._keys.items()]
        words = np.empty(values.size, np.uint32)
        for low in range(0, values.size, CHUNK):
            part = words[low : low + CHUNK]
            # towards zero, so that a sum of largest values does not exceed 31 bits
            scaled = np.trunc(values[low : low + CHUNK].astype(np.float64) * scale)
            part[...] = scaled.astype(np.int64).astype(np.uint32)
            mask = self._mask[: part.size]
            for adds, stream in streams:
                stream.update_into(self._zeros[: part.size].view(np.uint8), mask.view(np.uint8))
                if adds:
                    part += mask
                else:
                    part -= mask
        return words

    def _stream(self, key: bytes) -> Any:
        """The mask of this step: no two steps of a key share a nonce."""
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

        nonce = struct.pack("<QQ", 0, self._step)  # counter of blocks, nonce
        return Cipher(algorithms.ChaCha20(key, nonce), mode=None).encryptor()


def agree(group: Group) -> dict[int, bytes]:
    """A key with every other rank. Collective.

    Returns:
        Keys by rank, each known to two ranks alone.
    """
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    private = X25519PrivateKey.generate()
    public = np.zeros((group.size, KEY), np.uint8)
    public[group.rank] = np.frombuffer(private.public_key().public_bytes_raw(), np.uint8)
    all_gather(public.reshape(-1), comm=group, name="public keys")
    everybody = public.tobytes()
    found = {}
    for rank in range(group.size):
        if rank != group.rank:
            shared = private.exchange(X25519PublicKey.from_public_bytes(public[rank].tobytes()))
            pair = struct.pack("<II", min(rank, group.rank), max(rank, group.rank))
            found[rank] = HKDF(SHA256(), KEY, salt=everybody, info=INFO + pair).derive(shared)
    return found
