"""Sealed files hold what was sealed, or are refused; whatever is done to them."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

from mpidl.errors import DataError, SecurityError
from mpidl.security import sealed_file, sealing, sealing_keys
from mpidl.security.sealed_file import SealedFile
from mpidl.security.sealed_format import MAC, MAGIC, ROOM, SEGMENT, TAG, decode, encode
from tests.security.sealing.identities import make_identity, write_private

FLIPS = int(os.environ.get("MPIDL_TEST_FLIPS", "40"))
CONTENT = np.random.default_rng(0).integers(0, 256, 5 * SEGMENT + 100, dtype=np.uint8).tobytes()
PLACE = SEGMENT + TAG


@pytest.fixture
def sealed(tmp_path: Path, keys: Path) -> Path:
    """`CONTENT`, sealed for alice and bob."""
    return seal(tmp_path, "file", CONTENT, "alice", "bob")


def seal(folder: Path, name: str, content: bytes, *names: str) -> Path:
    path = folder / name
    sealing.write_sealed(path, content, sealing_keys.envelope_for(names))
    return path


def content(path: Path) -> bytes:
    with SealedFile(path) as file:
        return b"".join(bytes(piece) for piece in file.pieces())


@pytest.mark.parametrize(
    "size", [0, 1, SEGMENT - 1, SEGMENT, SEGMENT + 1, 3 * SEGMENT, len(CONTENT)]
)
def test_round_trip(tmp_path: Path, keys: Path, size: int) -> None:
    path = seal(tmp_path, "file", CONTENT[:size], "alice")
    assert content(path) == CONTENT[:size]
    assert path.stat().st_size == ROOM + size + TAG * -(-size // SEGMENT)
    assert sealed_file.is_sealed(path)


def test_every_flipped_bit_is_noticed(sealed: Path) -> None:
    raw, rng = sealed.read_bytes(), random.Random(1)
    places = [rng.randrange(ROOM) for _ in range(FLIPS // 2)]
    places += [rng.randrange(ROOM, len(raw)) for _ in range(FLIPS // 2)]
    for place in [*range(12), ROOM - 1, len(raw) - 1, *places]:
        changed = bytearray(raw)
        changed[place] ^= 1 << rng.randrange(8)
        sealed.write_bytes(changed)
        # of a flipped name or public key there is no recipient of ours left
        with pytest.raises((DataError, SecurityError, sealed_file.NotAuthentic)):
            content(sealed)


def swapped(raw: bytes, first: int, second: int) -> bytes:
    parts = [raw[:ROOM], *(raw[at : at + PLACE] for at in range(ROOM, len(raw), PLACE))]
    parts[first], parts[second] = parts[second], parts[first]
    return b"".join(parts)


ATTACKS: dict[str, Callable[[bytes], bytes]] = {
    "the last segment is cut off": lambda raw: raw[: ROOM + 5 * PLACE],
    "the last byte is cut off": lambda raw: raw[:-1],
    "one byte more": lambda raw: raw + b"\0",
    "no segment is left": lambda raw: raw[:ROOM],
    "half a header": lambda raw: raw[: ROOM // 2],
    "the magic alone": lambda raw: raw[: len(MAGIC)],
    "segments swapped": lambda raw: swapped(raw, 2, 3),
    "a segment twice": lambda raw: (
        raw[: ROOM + PLACE] + raw[ROOM : ROOM + PLACE] * 1 + raw[ROOM + 2 * PLACE :]
    ),
    "a segment removed": lambda raw: raw[: ROOM + PLACE] + raw[ROOM + 2 * PLACE :],
    "a segment of zeros": lambda raw: raw[:ROOM] + bytes(PLACE) + raw[ROOM + PLACE :],
    "another MAC": lambda raw: raw[: ROOM - MAC] + bytes(MAC) + raw[ROOM:],
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_attacks_on_the_bytes_are_refused(sealed: Path, attack: str) -> None:
    changed = ATTACKS[attack](sealed.read_bytes())
    assert changed != sealed.read_bytes()
    sealed.write_bytes(changed)
    with pytest.raises((DataError, sealed_file.NotAuthentic)):
        content(sealed)


def test_a_segment_of_another_file_of_the_same_key_is_refused(tmp_path: Path, keys: Path) -> None:
    envelope = sealing_keys.envelope_for(["alice"])
    paths = [tmp_path / "a", tmp_path / "b"]
    for path in paths:
        sealing.write_sealed(path, CONTENT, envelope)
    first, second = (path.read_bytes() for path in paths)
    paths[0].write_bytes(first[: ROOM + PLACE] + second[ROOM + PLACE : ROOM + 2 * PLACE]
                         + first[ROOM + 2 * PLACE :])  # fmt: skip
    with pytest.raises(sealed_file.NotAuthentic, match="segment 1"):
        content(paths[0])
    paths[0].write_bytes(second[:ROOM] + first[ROOM:])
    with pytest.raises(sealed_file.NotAuthentic, match="segment 0"):
        content(paths[0])


@pytest.mark.parametrize(
    "change",
    [
        {"version": 0},
        {"version": 2},
        {"cipher": "AES-128-GCM"},
        {"cipher": "none"},
        {"segment": 1 << 30},
        {"size": 5 * SEGMENT + 99},
        {"size": 1 << 62},
        {"generation": 2},
        {"generation": 0},
        {"identity": bytes(32)},
        {"salt": bytes(32)},
        {"prefix": bytes(7)},
        {"rewritten": ((1, bytes(7)),)},
        {"rewritten": ((99, bytes(7)),)},
        {"recipients": ()},
    ],
    ids=str,
)
def test_a_changed_header_is_refused(sealed: Path, change: dict[str, object]) -> None:
    raw = sealed.read_bytes()
    forged = msgspec.structs.replace(decode(raw[:ROOM], sealed), **change)
    sealed.write_bytes(encode(forged) + raw[ROOM - MAC :])
    with pytest.raises(DataError, match=r"header is damaged|is truncated"):
        SealedFile(sealed)


def test_a_recipient_cannot_be_added_without_the_key(sealed: Path, keys: Path) -> None:
    make_identity(keys, "mallory")
    raw = sealed.read_bytes()
    header = decode(raw[:ROOM], sealed)
    own = sealing_keys.envelope_for(["mallory"]).recipients
    forged = msgspec.structs.replace(header, recipients=(*header.recipients, *own))
    sealed.write_bytes(encode(forged) + raw[ROOM - MAC :])
    with pytest.raises(DataError, match="header is damaged"):
        SealedFile(sealed)


def only(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """From now on this process has these keys only."""
    monkeypatch.setenv("MPIDL_KEYS", str(folder))
    sealing_keys.forget()


def test_only_recipients_can_open(
    sealed: Path, keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("alice", "bob"):
        only(monkeypatch, keys / name)
        assert content(sealed) == CONTENT
    make_identity(tmp_path / "others", "mallory")
    for folder in (tmp_path / "others", tmp_path / "nowhere"):
        only(monkeypatch, folder)
        with pytest.raises(SecurityError, match="sealed for alice, bob"):
            content(sealed)


def test_recipients_change_without_a_touch_of_the_data(
    sealed: Path, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_identity(keys, "carol")
    before, state = sealed.read_bytes(), sealed.stat()
    assert sealing.rewrap(sealed, add=["carol"], remove=["bob"]) == ("alice", "carol")
    after = sealed.read_bytes()
    assert after[ROOM:] == before[ROOM:] and after[:ROOM] != before[:ROOM]
    assert sealed.stat().st_mtime_ns == state.st_mtime_ns
    for name in ("alice", "carol"):
        only(monkeypatch, keys / name)
        assert content(sealed) == CONTENT
    only(monkeypatch, keys / "bob")
    with pytest.raises(SecurityError, match="sealed for alice, carol"):
        content(sealed)
    only(monkeypatch, keys)
    sealed.write_bytes(before)
    with pytest.raises(SecurityError, match="an earlier header was put back"):
        content(sealed)


def test_recipients_that_cannot_be(sealed: Path, keys: Path) -> None:
    before = sealed.read_bytes()
    with pytest.raises(SecurityError, match="is not sealed for carol"):
        sealing.rewrap(sealed, remove=["carol"])
    with pytest.raises(SecurityError, match="1 to 32 different recipients"):
        sealing.rewrap(sealed, remove=["alice", "bob"])
    with pytest.raises(SecurityError, match="cannot be read"):
        sealing.rewrap(sealed, add=["nobody"])
    assert sealed.read_bytes() == before


def test_a_new_key_encrypts_anew(sealed: Path) -> None:
    before = sealed.read_bytes()
    assert sealing.renew(sealed, remove=["bob"]) == ("alice",)
    after = sealed.read_bytes()
    assert content(sealed) == CONTENT
    assert not any(a == b for a, b in zip(pieces(before), pieces(after), strict=True))


def pieces(raw: bytes) -> list[bytes]:
    return [raw[at : at + 64] for at in range(ROOM, len(raw), PLACE)]


def test_an_interrupted_change_of_recipients_is_completed(
    sealed: Path, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pwrite = os.pwrite

    def torn(handle: int, data: bytes, offset: int) -> int:
        pwrite(handle, data[:700], offset)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", torn)
        with pytest.raises(KeyboardInterrupt):
            sealing.rewrap(sealed, remove=["bob"])
    with pytest.raises(DataError, match="header is damaged"):
        content(sealed)
    make_identity(keys, "carol")
    assert sealing.rewrap(sealed, add=["carol"]) == ("alice", "carol")
    assert content(sealed) == CONTENT
    assert not [*sealed.parent.glob("*.rewrap")]


def test_a_header_beside_a_file_is_not_trusted(sealed: Path, tmp_path: Path) -> None:
    other = seal(tmp_path, "other", CONTENT, "alice").read_bytes()[:ROOM]
    before = sealed.read_bytes()
    for planted in (b"", b"\0" * ROOM, other, other + b"\0"):
        Path(f"{sealed}.rewrap").write_bytes(planted)
        with pytest.raises(DataError):
            sealing.rewrap(sealed, remove=["bob"])
        assert sealed.read_bytes() == before


def test_unsealed_files_are_for_their_owner(sealed: Path, tmp_path: Path) -> None:
    target = tmp_path / "plain"
    sealing.unseal_file(sealed, target)
    assert target.read_bytes() == CONTENT and target.stat().st_mode & 0o777 == 0o600
    assert not sealed_file.is_sealed(target)


def test_sealed_files_can_be_required(sealed: Path, tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"not sealed")
    assert sealed_file.read_bytes(tmp_path / "plain") == b"not sealed"
    sealed_file.require(True)
    assert sealed_file.read_bytes(sealed) == CONTENT
    with pytest.raises(SecurityError, match="is not sealed"):
        sealed_file.read_bytes(tmp_path / "plain")


def test_keys_that_others_can_read_are_refused(
    sealed: Path, keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only(monkeypatch, keys / "alice")
    key = keys / "alice" / "sealing.pem"
    for mode in (0o640, 0o604, 0o660):
        key.chmod(mode)
        sealing_keys.forget()
        with pytest.raises(SecurityError, match="can be read by others"):
            content(sealed)
    key.chmod(0o600)
    key.rename(tmp_path / "elsewhere")
    key.symlink_to(tmp_path / "elsewhere")
    sealing_keys.forget()
    with pytest.raises(SecurityError, match="cannot be read"):
        content(sealed)


def test_keys_with_a_passphrase(
    tmp_path: Path, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_identity(keys, "dora", passphrase=b"long and secret")
    path = seal(tmp_path, "file", CONTENT, "dora")
    only(monkeypatch, keys / "dora")
    for given, found in ((b"wrong", None), (b"long and secret\n", CONTENT)):
        write_private(tmp_path / "passphrase", given)
        monkeypatch.setenv("MPIDL_PASSPHRASE_FILE", str(tmp_path / "passphrase"))
        if found is None:
            with pytest.raises(SecurityError) as caught:
                content(path)
            assert "wrong" not in caught.value.where and "secret" not in str(caught.value)
        else:
            assert content(path) == found


def test_certificates_must_be_valid_and_of_the_right_kind(tmp_path: Path, keys: Path) -> None:
    for name, days in (("expired", 0), ("early", 2)):
        make_identity(keys, name, days=days)
        with pytest.raises(SecurityError, match="is not valid now"):
            sealing_keys.find_recipient(name)
    for name, text in (("text.pem", b"no certificate"), ("empty.pem", b"")):
        (tmp_path / name).write_bytes(text)
        with pytest.raises(SecurityError, match="is no certificate"):
            sealing_keys.find_recipient(str(tmp_path / name))


def test_a_key_that_is_not_that_of_its_certificate_is_refused(
    sealed: Path, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (keys / "bob" / "sealing.pem").replace(keys / "alice" / "sealing.pem")
    only(monkeypatch, keys / "alice")
    with pytest.raises(SecurityError, match="does not belong to the certificate"):
        content(sealed)


def test_keys_are_in_no_text(sealed: Path) -> None:
    with SealedFile(sealed) as file:
        texts = [repr(file.keys), str(file.keys), repr(sealing_keys.keyring())]
        secret = [file.keys.data, file.keys.segments, file.keys.header]
    envelope = sealing_keys.envelope_for(["alice"])
    texts += [repr(envelope), str(envelope)]
    for key in (*secret, envelope.key):
        assert not any(key.hex() in text or repr(key)[2:-1] in text for text in texts)


def test_keys_of_before_open_what_is_sealed_for_them(
    sealed: Path, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = keys / "alice"
    before.rename(keys.parent / "before")
    new = make_identity(keys, "alice")
    only(monkeypatch, new)
    with pytest.raises(SecurityError, match="sealed for alice, bob"):
        content(sealed)
    (new / "retired").mkdir()
    (keys.parent / "before" / "sealing.pem").rename(new / "retired" / "1.pem")
    only(monkeypatch, new)
    assert content(sealed) == CONTENT
