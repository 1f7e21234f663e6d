"""Sealed records: what comes out is what went in, in its place, or nothing."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpidl.errors import SecurityError
from mpidl.security import aead, records
from mpidl.security.aead import AES, CHACHA, SUITES, TAG
from mpidl.security.records import HEADER, KEPT, OVERHEAD, Limits, Receiver, Sender

FLIPS = int(os.environ.get("MPIDL_TEST_FLIPS", "300"))
COMM = b"comm-one"
SECRET = bytes(range(32))
# Test case 16 of the GCM specification (McGrew and Viega), and RFC 8439, 2.8.2
VECTORS = {
    AES: (
        "feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308",
        "cafebabefacedbaddecaf888",
        "feedfacedeadbeeffeedfacedeadbeefabaddad2",
        "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a721c3c0c9595680953"
        "2fcf0e2449a6b525"
        "b16aedf5aa0de657ba637b39",
        "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa8cb08e48590dbb3d"
        "a7b08b1056828838"
        "c5f61e6393ba7a0abcc9f66276fc6ece0f4e1768cddf8853bb2d551b",
    ),
    CHACHA: (
        "808182838485868788898a8b8c8d8e8f909192939495969798999a9b9c9d9e9f",
        "070000004041424344454647",
        "50515253c0c1c2c3c4c5c6c7",
        b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the "
        b"future, sunscreen would be it.".hex(),
        "d31a8d34648e60db7b86afbc53ef7ec2a4aded51296e08fea9e2b5a736ee62d63dbea45e8ca96712"
        "82fafb69da92728b"
        "1a71de0a9e060b2905d6a5b67ecd3b3692ddbd7f2d778b8c9803aee328091b58fab324e4fad67594"
        "5585808b4831d7bc"
        "3ff4def08e4b7a9de576d26586cec64b61161ae10b594f09e26a7e902ecbd0600691",
    ),
}


@pytest.mark.parametrize("maker", aead.available())
@pytest.mark.parametrize("suite", SUITES)
def test_vectors(suite: str, maker: Any) -> None:
    key, nonce, aad, plain, sealed = map(bytes.fromhex, VECTORS[suite])
    out, back = np.empty(len(sealed), np.uint8), np.empty(len(plain), np.uint8)
    assert maker(suite, key, True).run(nonce, aad, plain, out) and out.tobytes() == sealed
    opening = maker(suite, key, False)
    assert opening.run(nonce, aad, out, back) and back.tobytes() == plain
    out[0] ^= 1
    assert not opening.run(nonce, aad, out, back) and not back.any(), "wiped"
    assert not opening.run(nonce, aad + b"x", np.frombuffer(sealed, np.uint8), back)


def test_keys_refuse_what_does_not_fit() -> None:
    with pytest.raises(SecurityError):
        aead.make_key("null", SECRET, sealing=True)
    with pytest.raises(SecurityError):
        aead.make_key(AES, b"short", sealing=True)
    if aead._Compiled is not None:
        with pytest.raises(ValueError, match="Key"):
            aead._Compiled("null", SECRET, True)
        key = aead._Compiled(AES, SECRET, True)
        for nonce, room in ((bytes(11), 26), (bytes(12), 25), (bytes(12), 27)):
            with pytest.raises(ValueError, match="other lengths"):
                key.run(nonce, b"", bytes(10), bytearray(room))
        with pytest.raises(BufferError):
            key.run(bytes(12), b"", bytes(10), bytes(26))


def both(suite: str = AES, limits: Limits | None = None) -> tuple[Sender, Receiver]:
    return Sender(suite, SECRET, limits or Limits()), Receiver(suite, SECRET, 1)


def seal(sender: Sender, number: int, plain: bytes, tag: int = 5, comm: bytes = COMM) -> Any:
    out = np.empty(len(plain) + OVERHEAD, np.uint8)
    sender.seal((comm, tag, number), len(plain), np.frombuffer(plain, np.uint8), out)
    return out


def opened(receiver: Receiver, number: int, sealed: Any, tag: int = 5, comm: bytes = COMM) -> bytes:
    out = np.empty(max(0, sealed.size - OVERHEAD), np.uint8)
    receiver.open((comm, tag, number), out.size, sealed, out)
    return out.tobytes()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.binary(max_size=300), max_size=12), st.sampled_from(SUITES), st.integers(2, 5))
def test_what_comes_out_is_what_went_in(parts: list[bytes], suite: str, limit: int) -> None:
    sender, receiver = both(suite, Limits(records=limit))
    for number, part in enumerate(parts):
        sealed = seal(sender, number, part)
        assert opened(receiver, number, sealed) == part
        assert len(part) < 8 or part not in sealed.tobytes()


ATTACKS: dict[str, Callable[[Receiver, list[Any]], Any]] = {
    "replayed": lambda r, s: (opened(r, 0, s[0]), opened(r, 1, s[0])),
    "reordered": lambda r, s: opened(r, 0, s[1]),
    "left out": lambda r, s: (opened(r, 0, s[0]), opened(r, 1, s[2])),
    "of another tag": lambda r, s: opened(r, 0, s[0], tag=6),
    "of another communicator": lambda r, s: opened(r, 0, s[0], comm=b"comm-two"),
    "of another rank": lambda r, s: opened(Receiver(AES, bytes(32), 2), 0, s[0]),
    "in another cipher": lambda r, s: opened(Receiver(CHACHA, SECRET, 2), 0, s[0]),
    "cut": lambda r, s: opened(r, 0, s[0][:-1].copy()),
    "without its end": lambda r, s: opened(r, 0, s[0][:OVERHEAD].copy()),
    "longer": lambda r, s: opened(r, 0, np.append(s[0], np.uint8(0))),
    "half of one, half of another": lambda r, s: opened(r, 0, np.append(s[0][:30], s[1][30:])),
    "empty": lambda r, s: r.total(s[0][:0]),
    "of a key far ahead": lambda r, s: opened(r, 0, renumbered(s[0], epoch=1 << 31)),
    "of the next key": lambda r, s: opened(r, 0, renumbered(s[0], epoch=1)),
    "with another counter": lambda r, s: opened(r, 0, renumbered(s[0], count=9)),
    "with another length": lambda r, s: opened(r, 0, renumbered(s[0], total=9)),
}


def renumbered(sealed: Any, **changes: int) -> Any:
    epoch, count, total = HEADER.unpack_from(sealed)
    held = {"epoch": epoch, "count": count, "total": total} | changes
    made = sealed.copy()
    HEADER.pack_into(made, 0, *held.values())
    return made


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_record_that_does_not_belong_there_is_refused(attack: str) -> None:
    sender, receiver = both()
    sealed = [seal(sender, number, b"part %d " % number * 9) for number in range(3)]
    with pytest.raises(SecurityError) as caught:
        ATTACKS[attack](receiver, sealed)
    # the same words for everything: what they tell apart would help the one who tries
    assert caught.value.what == records.FORGED


@pytest.mark.parametrize("suite", SUITES)
def test_every_flipped_bit_is_noticed(suite: str) -> None:
    sender, receiver = both(suite)
    sealed, draw = seal(sender, 0, os.urandom(100)), random.Random(3)
    for _ in range(FLIPS):
        bit = draw.randrange(8 * sealed.size)
        changed = sealed.copy()
        changed[bit // 8] ^= 1 << bit % 8
        out = np.full(100, 7, np.uint8)
        with pytest.raises(SecurityError):
            receiver.open((COMM, 5, 0), 100, changed, out)
    assert opened(receiver, 0, sealed)


class Noted:
    """A key that notes what it is used with."""

    def __init__(self, suite: str, secret: bytes, uses: list[tuple[bytes, bytes]]) -> None:
        self.secret, self.uses = secret, uses

    def run(self, nonce: bytes, aad: bytes, given: Any, out: Any) -> bool:
        self.uses.append((self.secret, nonce))
        return True


def test_no_nonce_is_used_twice_with_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """By any number of threads, and across changes of keys."""
    uses: list[tuple[bytes, bytes]] = []
    monkeypatch.setattr(
        records, "make_key", lambda suite, secret, sealing: Noted(suite, secret, uses)
    )
    sender = Sender(AES, SECRET, Limits(records=50, nbytes=3000))

    def work(tag: int) -> None:
        for number in range(200):
            seal(sender, number, bytes(number), tag)

    threads = [threading.Thread(target=work, args=(tag,)) for tag in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(uses) == len(set(uses)) == 800
    keys = {secret for secret, _ in uses}
    assert len(keys) > 800 / 50, "changed by bytes too"
    assert max(sum(secret == key for secret, _ in uses) for key in keys) <= 50


def test_keys_change_and_late_records_still_open() -> None:
    sender, receiver = both(limits=Limits(records=3))
    sealed = [seal(sender, number, b"%d" % number) for number in range(3 * (KEPT + 1))]
    epochs = [HEADER.unpack_from(one)[0] for one in sealed]
    assert epochs == [number // 3 for number in range(len(sealed))]
    last = len(sealed) - 1
    assert opened(receiver, last, sealed[last]) == b"%d" % last
    assert opened(receiver, 3, sealed[3]) == b"3", "of a key that is kept"
    with pytest.raises(SecurityError):
        opened(receiver, 0, sealed[0])  # its key is gone for ever


def test_an_old_key_cannot_be_made_from_a_new_one() -> None:
    sender, _ = both(limits=Limits(records=2))
    for number in range(2 * KEPT + 3):
        seal(sender, number, b"")
    held = [value for value in vars(sender._chain).values() if isinstance(value, bytes)]
    assert SECRET not in held and min(sender._chain.keys) == sender._chain.epoch - KEPT + 1


def test_the_overhead_is_what_the_page_says() -> None:
    assert OVERHEAD == HEADER.size + TAG == 36


@settings(max_examples=int(os.environ.get("MPIDL_TEST_FUZZ", "100")), deadline=None)
@given(st.binary(max_size=200))
def test_noise_is_refused(noise: bytes) -> None:
    _, receiver = both()
    with pytest.raises(SecurityError):
        opened(receiver, 0, np.frombuffer(noise, np.uint8))
