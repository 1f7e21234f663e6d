"""Sealed data sets are read as plain ones, or refused."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpidl.data import LaneSampler, Loader, Reader
from mpidl.data.hdf5 import open_file, sealed_of
from mpidl.data.index import IndexOptions, index_files
from mpidl.data.manifest import load_manifest
from mpidl.data.sealed_rows import SealedRows
from mpidl.errors import DataError, MpidlError, SecurityError
from mpidl.security import sealing, sealing_keys
from mpidl.security.sealed_file import NotAuthentic, SealedFile, is_sealed
from mpidl.security.sealed_format import ROOM, SEGMENT, TAG
from tests.security.sealing.conftest import keys as keys
from tests.security.sealing.identities import make_identity

FLIPS = int(os.environ.get("MPIDL_TEST_FLIPS", "40"))


def both(make_dataset: Any, **options: Any) -> tuple[Path, Path]:
    plain, _ = make_dataset(500, name="plain", **options)
    sealed, _ = make_dataset(500, name="sealed", seal_for=("alice",), **options)
    return plain, sealed


@pytest.mark.parametrize("compression", [None, "gzip"])
def test_batches_are_those_of_the_plain_data_set(
    make_dataset: Any, keys: Path, compression: str | None
) -> None:
    folders = both(make_dataset, compression=compression)
    assert all(is_sealed(path) for path in folders[1].iterdir())
    found = []
    for folder in folders:
        reader = Reader(folder)
        loader = Loader(reader, LaneSampler(len(reader), 16, window=3))
        found.append(
            [
                {name: array.copy() for name, array in batch.arrays.items()}
                for epoch in range(2)
                for batch in loader.epoch(epoch)
            ]
        )
        loader.close()
        reader.close()
    for plain, sealed in zip(*found, strict=True):
        assert plain.keys() == sealed.keys()
        for name in plain:
            np.testing.assert_array_equal(plain[name], sealed[name])


def test_digests_are_those_of_the_content(make_dataset: Any, keys: Path) -> None:
    """A data set that is sealed afterwards has its manifest, and opens with it."""
    plain, _ = make_dataset(100)
    before = load_manifest(plain)
    envelope = sealing_keys.envelope_for(["alice"])
    for path in plain.iterdir():
        sealing.seal_file(path, path, envelope)
    assert load_manifest(plain) == before
    with Reader(plain, verify=True) as reader:
        assert reader.read([(3, 5)])["label"].tolist() == [3, 4]
    sealing.rewrap(plain / "manifest.json", add=["bob"])
    Reader(plain, verify=True).close()


def test_every_flipped_bit_of_a_shard_is_noticed(make_dataset: Any, keys: Path) -> None:
    folder, _ = make_dataset(4000, shards=1, seal_for=("alice",))
    rng = random.Random(2)
    for name in ("shard-00000.h5", "manifest.json"):
        raw = (folder / name).read_bytes()
        for _ in range(FLIPS if name.startswith("shard") else FLIPS // 4):
            changed = bytearray(raw)
            changed[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
            (folder / name).write_bytes(changed)
            with pytest.raises((DataError, SecurityError)):
                Reader(folder, verify=True)
        (folder / name).write_bytes(raw)
    Reader(folder, verify=True).close()


def test_damage_is_noticed_where_it_is_read(make_dataset: Any, keys: Path) -> None:
    """Also without the checksums, and by both ways of reading."""
    for compression in (None, "gzip"):
        folder, _ = make_dataset(
            6000, shards=1, seal_for=("alice",), name=f"{compression}", compression=compression
        )
        path = folder / "shard-00000.h5"
        raw = bytearray(path.read_bytes())
        raw[-SEGMENT // 2] ^= 1
        path.write_bytes(raw)
        with pytest.raises(DataError) as caught, Reader(folder, verify=False) as reader:
            reader.read([(0, 6000)])
        assert "is not authentic" in str(caught.value) and str(path) in str(caught.value)


def test_a_shard_of_another_data_set_is_refused(make_dataset: Any, keys: Path) -> None:
    first, _ = make_dataset(60, name="first", seal_for=("alice",))
    second, _ = make_dataset(60, name="second", seal_for=("alice",))
    (first / "shard-00001.h5").write_bytes((second / "shard-00000.h5").read_bytes())
    with pytest.raises(DataError, match="SHA-256"):
        Reader(first, verify=True)


def test_files_in_place_may_be_sealed(tmp_path: Path, context: Any, keys: Path) -> None:
    path = tmp_path / "a.h5"
    with open_file(path, "w") as file:
        file["x"], file["y"] = np.arange(30.0).reshape(10, 3), np.arange(10) % 2
    sealing.seal_file(path, path, sealing_keys.envelope_for(["alice"]))
    options = IndexOptions(features=["x"], labels=["y"], checksum=True)
    manifest = index_files([path], tmp_path / "indexed", options, context).manifest
    with Reader(tmp_path / "indexed", verify=True) as reader:
        np.testing.assert_array_equal(reader.read([(4, 5)])["x"], [[12.0, 13.0, 14.0]])
    assert manifest.samples == 10


def test_a_shared_file_is_not_sealed_while_it_is_written(make_dataset: Any, keys: Path) -> None:
    with pytest.raises(DataError, match="cannot be sealed"):
        make_dataset(50, shared=True, seal_for=("alice",))


def test_unknown_recipients_are_refused_before_any_work(make_dataset: Any, keys: Path) -> None:
    with pytest.raises(MpidlError, match="cannot be read"):
        make_dataset(50, seal_for=("nobody",))


WIDE = np.random.default_rng(1).integers(0, 256, (5000, 23), dtype=np.uint8)
LONG = np.random.default_rng(2).integers(0, 256, (9, 3 * SEGMENT + 7), dtype=np.uint8)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[SealedFile]]:
    folder = tmp_path_factory.mktemp("rows")
    make_identity(folder, "alice")
    sealing_keys.use(folder)
    envelope = sealing_keys.envelope_for(["alice"])
    opened = []
    for number, data in enumerate((WIDE, LONG)):
        path = folder / str(number)
        with open_file(path, "w", seal=envelope) as file:
            file.create_dataset("x", data=data, chunks=(max(1, len(data) // 3), data.shape[1]))
            file["x"][1] = data[1]  # segments that were written twice
        opened.append(open_file(path))
    yield opened
    for file in opened:
        file.close()
    sealing_keys.forget()


@given(
    cuts=st.lists(st.integers(0, 5000), max_size=12),
    wide=st.booleans(),
    compiled=st.booleans(),
    threads=st.integers(1, 3),
    seed=st.integers(0, 99),
)
@settings(max_examples=80, deadline=None)
def test_rows_go_to_their_places(
    files: list[Any], cuts: list[int], wide: bool, compiled: bool, threads: int, seed: int
) -> None:
    data, file = (WIDE, files[0]) if wide else (LONG, files[1])
    edges = sorted({cut % (len(data) + 1) for cut in cuts})
    edges = edges[: len(edges) // 2 * 2]
    ranges = np.array(edges, np.int64).reshape(-1, 2)
    wanted = np.concatenate([data[:0], *(data[low:high] for low, high in ranges)])
    chunk = file["x"].chunks[0]
    ids = [(n * chunk, 0) for n in range(-(-len(data) // chunk))]
    offsets = np.array([file["x"].id.get_chunk_info_by_coord(c).byte_offset for c in ids])
    sealed = sealed_of(file)
    assert sealed is not None
    rows = SealedRows(sealed, use_c=compiled)
    out = np.full((len(wanted) + 3, data.shape[1]), 7, np.uint8)
    place = np.random.default_rng(seed).permutation(len(out))[: len(wanted)]
    rows.place_rows(ranges, offsets, place, out, chunk_rows=chunk, threads=threads)
    np.testing.assert_array_equal(out[place], wanted)
    assert (np.delete(out, place, axis=0) == 7).all()
    flat = np.empty(wanted.size, np.uint8)
    rows.read_rows(ranges, offsets, flat, chunk_rows=chunk, row_bytes=data.shape[1])
    np.testing.assert_array_equal(flat, wanted.reshape(-1))
    with pytest.raises(ValueError, match="do not fit"):
        rows.read_rows(
            ranges, offsets, np.empty(len(flat) + 1, np.uint8), chunk_rows=chunk, row_bytes=1
        )


@pytest.mark.parametrize("compiled", [False, True])
def test_rows_that_are_not_authentic_are_refused(
    tmp_path: Path, keys: Path, compiled: bool
) -> None:
    path = tmp_path / "file"
    data = np.random.default_rng(0).integers(0, 256, 4 * SEGMENT, dtype=np.uint8)
    sealing.write_sealed(path, data.tobytes(), sealing_keys.envelope_for(["alice"]))
    raw = bytearray(path.read_bytes())
    raw[ROOM + 2 * (SEGMENT + TAG) + 5] ^= 1
    path.write_bytes(raw)
    with SealedFile(path) as file:
        rows = SealedRows(file, use_c=compiled)
        for ranges in ([[0, 4 * SEGMENT]], [[2 * SEGMENT + 9, 2 * SEGMENT + 10]]):
            out = np.ones(ranges[0][1] - ranges[0][0], np.uint8)
            with pytest.raises(NotAuthentic, match="segment 2"):
                rows.read_rows(
                    np.array(ranges), np.zeros(1, np.int64), out, chunk_rows=1 << 20, row_bytes=1
                )
        os.truncate(path, ROOM + SEGMENT)
        out = np.empty(4 * SEGMENT, np.uint8)
        with pytest.raises(OSError):
            rows.read_rows(
                np.array([[0, 4 * SEGMENT]]), np.zeros(1, np.int64), out, chunk_rows=1 << 20,
                row_bytes=1,
            )  # fmt: skip
