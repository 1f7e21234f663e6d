"""Ranks agree on keys, and nobody else gets in between."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpidl.errors import SecurityError
from mpidl.security import handshake
from mpidl.security.aead import AES, CHACHA
from mpidl.security.handshake import Handshake, Hello, Place
from tests.security.ranks import agree, credentials, greet, key_of

FLIPS = int(os.environ.get("MPIDL_TEST_FLIPS", "60"))


def test_each_pair_has_two_secrets_that_nobody_else_has() -> None:
    ranks = agree(4)
    pairs = {(a, b): ranks[a].pair(b) for a in range(4) for b in range(4) if a != b}
    for (a, b), (to, back) in pairs.items():
        assert (back, to) == pairs[b, a] and len(to) == 32
    assert len({secret for pair in pairs.values() for secret in pair}) == 12
    assert pairs[0, 1] != agree(4)[0].pair(1), "keys are fresh"


def test_secrets_and_keys_are_in_no_text() -> None:
    one = credentials()
    raw = one.key.private_bytes_raw()
    assert "key" not in repr(one) and raw.hex() not in repr(one)


def test_the_cipher_is_one_that_all_have(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {one.suite for one in agree(2)} <= {AES, CHACHA}
    with_aes = Handshake(credentials(), Place(0, 2))
    monkeypatch.setattr(handshake, "preferred_suites", lambda: (CHACHA,))
    ranks = [with_aes, Handshake(credentials(), Place(1, 2))]
    hellos = [one.hello for one in ranks]
    signatures = [one.sign(hellos) for one in ranks]
    assert {one.finish(signatures).suite for one in ranks} == {CHACHA}


def edited(raw: bytes, **changes: Any) -> bytes:
    hello = msgspec.msgpack.decode(raw, type=Hello)
    return msgspec.msgpack.encode(msgspec.structs.replace(hello, **changes))


EDITS: dict[str, dict[str, Any]] = {
    "another X25519 key (man in the middle)": {"share": os.urandom(32)},
    "another random number": {"random": os.urandom(32)},
    "AES taken out of the offer (downgrade)": {"suites": (CHACHA,)},
    "another rank": {"rank": 2},
    "another node (to be sent the clear text)": {"node": "here"},
    "another number of ranks": {"size": 2},
    "another job": {"job": "job-2"},
    "a weaker scope": {"scope": "nodes"},
    "another configuration": {"binding": bytes(32)},
    "another version": {"version": 2},
    "no cipher": {"suites": ()},
    "an unknown cipher": {"suites": ("null", CHACHA)},
    "no certificate": {"chain": (b"x",)},
}


@pytest.mark.parametrize("edit", EDITS)
def test_a_hello_that_is_changed_on_its_way_is_refused(edit: str) -> None:
    """Rank 0 sees another hello of rank 1 than rank 1 has sent."""
    ranks = greet()
    hellos = [one.hello for one in ranks]
    seen = [hellos[0], edited(hellos[1], **EDITS[edit]), hellos[2]]
    with pytest.raises(SecurityError, match="not trusted"):
        signatures = [
            ranks[0].sign(seen),
            *(one.sign(hellos) for one in ranks[1:]),
        ]
        ranks[0].finish(signatures)


def test_if_all_see_the_same_changed_hello_the_one_who_sent_it_refuses() -> None:
    ranks = greet()
    hellos = [one.hello for one in ranks]
    hellos[1] = edited(hellos[1], share=os.urandom(32))
    with pytest.raises(SecurityError, match="came back changed"):
        ranks[1].sign(hellos)


PLACES = {
    "another number of ranks": Place(1, 2),
    "a rank twice": Place(0, 3),
    "another scope": Place(1, 3, scope="nodes"),
    "another configuration": Place(1, 3, binding=b"other"),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_rank_that_stands_elsewhere_is_refused(place: str) -> None:
    ranks = greet(rank1=PLACES[place])
    hellos = [one.hello for one in ranks]
    with pytest.raises(SecurityError, match="rank 1 is not trusted"):
        ranks[0].sign(hellos)


def finish(change: Callable[[list[bytes], list[bytes]], None]) -> None:
    """All hellos are genuine; signatures are changed on their way to rank 0."""
    ranks = greet()
    hellos = [one.hello for one in ranks]
    signatures = [one.sign(hellos) for one in ranks]
    change(signatures, hellos)
    ranks[0].finish(signatures)


def swap(signatures: list[bytes], hellos: list[bytes]) -> None:
    signatures[1], signatures[2] = signatures[2], signatures[1]


def other_key(signatures: list[bytes], hellos: list[bytes]) -> None:
    signatures[1] = key_of("somebody").sign(b"anything")


def old(signatures: list[bytes], hellos: list[bytes]) -> None:
    ranks = greet()
    hellos = [one.hello for one in ranks]
    signatures[1] = ranks[1].sign(hellos)


def missing(signatures: list[bytes], hellos: list[bytes]) -> None:
    signatures.pop()


def reflected(signatures: list[bytes], hellos: list[bytes]) -> None:
    signatures[1] = signatures[0]


@pytest.mark.parametrize("change", [swap, other_key, old, missing, reflected])
def test_signatures_of_others_and_of_earlier_are_refused(change: Any) -> None:
    with pytest.raises(SecurityError, match="not trusted"):
        finish(change)
    finish(lambda signatures, hellos: None)


def test_a_certificate_of_another_site_or_job_is_refused() -> None:
    for other, reason in (
        (credentials(issuer="another site"), "not of this site"),
        (credentials("job-2"), "another job"),
    ):
        intruder = Handshake(other, Place(1, 2))
        one = Handshake(credentials(), Place(0, 2))
        hellos = [one.hello, edited(intruder.hello, job="job-1")]
        with pytest.raises(SecurityError, match=reason):
            one.finish([one.sign(hellos), bytes(64)])


def test_a_hello_of_another_show_is_no_use() -> None:
    """Replayed with its own signature: whoever replays it lacks the X25519 key, and the transcript
    of today has another signature."""
    before = greet()
    old_hellos = [one.hello for one in before]
    signature = before[1].sign(old_hellos)
    today = greet()
    hellos = [today[0].hello, before[1].hello, today[2].hello]
    signatures = [today[0].sign(hellos), signature, today[2].sign(hellos)]
    with pytest.raises(SecurityError, match="signature is not genuine"):
        today[0].finish(signatures)


def test_a_rank_cannot_be_another_one_with_the_same_hello() -> None:
    ranks = greet()
    hellos = [ranks[0].hello, edited(ranks[0].hello, rank=1), ranks[2].hello]
    with pytest.raises(SecurityError, match="same fresh number"):
        ranks[0].sign(hellos)


def test_a_degenerate_key_is_refused() -> None:
    ranks = agree(2)
    ranks[0]._shares[1] = bytes(32)
    with pytest.raises(SecurityError, match="degenerate"):
        ranks[0].pair(1)


def test_every_flipped_bit_is_noticed() -> None:
    ranks = greet(2)
    hellos = [one.hello for one in ranks]
    signatures = [one.sign(hellos) for one in ranks]
    draw = random.Random(5)
    for _ in range(FLIPS):
        position = draw.randrange(8 * (len(hellos[1]) + 64))
        changed = bytearray(hellos[1] + signatures[1])
        changed[position // 8] ^= 1 << position % 8
        one = ranks[0]
        with pytest.raises(SecurityError, match=r"not trusted|not of this site"):
            one.sign([hellos[0], bytes(changed[:-64])])
            one.finish([signatures[0], bytes(changed[-64:])])
    one.sign(hellos)
    one.finish(signatures)


@settings(max_examples=int(os.environ.get("MPIDL_TEST_FUZZ", "60")), deadline=None)
@given(st.binary(max_size=400), st.integers(0, 400))
def test_what_is_no_hello_is_refused(noise: bytes, cut: int) -> None:
    one = Handshake(credentials(), Place(0, 2))
    for raw in (noise, one.hello[:cut] + noise, noise * 200):
        with pytest.raises(SecurityError):
            one.sign([one.hello, raw])
