"""Sealed files that are written in any order, as HDF5 does; and parsers of outside bytes."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mpidl.data import hdf5
from mpidl.errors import DataError, MpidlError, SecurityError
from mpidl.security import key_files, sealed_writer, sealing_keys
from mpidl.security.sealed_file import Cipher, SealedFile, is_sealed
from mpidl.security.sealed_format import ROOM, SEGMENT, decode, encode
from mpidl.security.sealed_writer import SealedWriter

SLOW = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
PLACES = st.one_of(
    st.integers(0, 6 * SEGMENT),
    st.integers(0, 6).map(lambda n: n * SEGMENT),
    st.integers(1, 6).map(lambda n: n * SEGMENT - 1),
)
WRITES = st.lists(
    st.one_of(
        st.tuples(st.just("write"), PLACES, st.integers(1, 3 * SEGMENT)),
        st.tuples(st.just("truncate"), PLACES, st.just(0)),
        st.tuples(st.just("read"), PLACES, st.integers(1, 2 * SEGMENT)),
    ),
    max_size=14,
)


@given(writes=WRITES, most=st.sampled_from([0, 1, 4096]))
@SLOW
def test_any_order_of_writes(keys: Path, writes: list[tuple[str, int, int]], most: int) -> None:
    """As a plain file; and no nonce encrypts two texts, however little memory there is."""
    used: dict[bytes, bytes] = {}
    encrypt = Cipher.encrypt_into

    def watched(self: Cipher, number: int, data: Any, out: Any, nonce: bytes = b"") -> None:
        made = nonce or self.nonce(number)
        assert used.setdefault(made, bytes(data)) == bytes(data)
        encrypt(self, number, data, out, nonce)

    model, rng = bytearray(), np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(Cipher, "encrypt_into", watched)
        patch.setattr(sealed_writer, "MOST_PARTIAL", most)
        path = Path(folder) / "file"
        writer = SealedWriter(path, sealing_keys.envelope_for(["alice"]))
        writer.start()
        for kind, at, size in writes:
            if kind == "write":
                data = rng.bytes(size)
                writer.write(data, at)
                model.extend(bytes(max(0, at + size - len(model))))
                model[at : at + size] = data
            elif kind == "truncate":
                writer.truncate(at)
                model = model[:at] + bytes(max(0, at - len(model)))
            else:
                out = bytearray(size)
                count = writer.read_into(out, at)
                assert out[:count] == model[at : at + size]
        assert writer.size == len(model) and not is_sealed(path)
        writer.finish()
        writer.close()
        with SealedFile(path) as file:
            assert b"".join(map(bytes, file.pieces())) == model
            for start in range(0, len(model), 9001):
                held = bytearray(min(777, len(model) - start))
                file.read_into(held, start)
                assert held == model[start : start + len(held)]


def test_plaintext_is_never_on_the_disk(tmp_path: Path, keys: Path) -> None:
    """Neither while HDF5 writes, nor after it, nor where it ends early."""
    secret = b"the name of the patient is "
    data = np.frombuffer(secret * 3000, np.uint8)
    path = tmp_path / "a.h5"

    def found() -> bool:
        return any(secret[:9] in other.read_bytes() for other in tmp_path.glob("*.h5*"))

    for compression in (None, "gzip"):
        with hdf5.open_file(path, "w", seal=sealing_keys.envelope_for(["alice"])) as file:
            for number in range(5):
                file.create_dataset(f"secret {number}", data=data, compression=compression)
                file.attrs[f"note {number}"] = secret.decode()
                file.flush()
                assert not found() and not is_sealed(path)
        assert not found() and is_sealed(path)
        with hdf5.open_file(path) as file:
            assert file["secret 4"][...].tobytes() == secret * 3000
    with hdf5.open_file(path, "w") as file:
        file["secret"] = data
    assert found()


def test_a_write_that_fails_leaves_nothing_that_opens(
    tmp_path: Path, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any) -> int:
        raise OSError(28, os.strerror(28))

    path = tmp_path / "a.h5"
    file = hdf5.open_file(path, "w", seal=sealing_keys.envelope_for(["alice"]))
    file["x"] = np.zeros(100_000)
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space"):
        file.close()
    monkeypatch.undo()
    assert not is_sealed(path)


def test_too_many_segments_written_again(
    tmp_path: Path, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sealed_writer, "MOST_REWRITTEN", 3)
    writer = SealedWriter(tmp_path / "file", sealing_keys.envelope_for(["alice"]))
    writer.start()
    writer.write(bytes(10 * SEGMENT), 0)
    with pytest.raises(OSError, match="more than 3 segments"):
        for number in range(1, 9):
            writer.write(b"x", number * SEGMENT)
    writer.close()


@pytest.fixture(scope="module")
def header(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    from tests.security.sealing.identities import make_identity

    folder = tmp_path_factory.mktemp("keys")
    make_identity(folder, "alice")
    sealing_keys.use(folder)
    writer = SealedWriter(folder / "file", sealing_keys.envelope_for(["alice"]))
    writer.start()
    writer.write(bytes(5 * SEGMENT), 0)
    writer.finish()
    writer.close()
    sealing_keys.forget()
    return (folder / "file").read_bytes()[:ROOM]


@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_headers_from_outside(header: bytes, data: st.DataObject) -> None:
    """Any bytes are a header or are refused; nothing else is raised, and nothing large is made."""
    raw = bytearray(header)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, 700))
        piece = data.draw(st.binary(min_size=1, max_size=40))
        raw[place : place + len(piece)] = piece
    cut = data.draw(st.sampled_from([0, 11, 12, 300, ROOM, ROOM]))
    try:
        found = decode(bytes(raw[:cut]), "a file")
    except DataError as error:
        assert error.where == "a file" and error.remedy
        return
    assert len(encode(found)) == ROOM - 32 and found.stored < 1 << 47


@given(content=st.binary(max_size=300))
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_notes_and_keys_from_outside(tmp_path: Path, content: bytes) -> None:
    for name, read in (
        (key_files.GENERATIONS, lambda path: key_files.read_generations(path.parent)),
        (key_files.PRIVATE, key_files.load_private),
        (key_files.CERTIFICATE, key_files.load_public),
    ):
        path = tmp_path / name
        path.write_bytes(content)
        path.chmod(0o600)
        try:
            read(path)
        except MpidlError as error:
            assert isinstance(error, SecurityError) and error.remedy
