"""Writing, reading, and everything that can be wrong with a data set."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mpidl.data import LaneSampler, Loader, Reader
from mpidl.data.formats.source import Source
from mpidl.data.hdf5 import h5py
from mpidl.data.manifest import load_manifest
from mpidl.data.writer import WriteOptions, write_dataset
from mpidl.errors import DataError
from mpidl.files import file_sha256

FIXTURES = [HealthCheck.function_scoped_fixture]


@pytest.mark.parametrize(
    "options", [{}, {"shared": True}, {"compression": "gzip"}, {"compression": "lzf"}]
)
def test_what_is_written_is_read(make_dataset: Any, options: dict[str, Any]) -> None:
    folder, arrays = make_dataset(53, 4, **options)
    with Reader(folder) as reader:
        found = reader.read([(0, 53)])
        for name, array in arrays.items():
            np.testing.assert_array_equal(found[name], array)
        part = reader.read([(3, 5), (12, 30), (52, 53)])
        np.testing.assert_array_equal(part["x"][:, 0, 0], [3, 4, *range(12, 30), 52])
        assert reader.locate(52)[0].endswith(reader.manifest.shards[-1].file)


@given(st.lists(st.integers(0, 60), min_size=0, max_size=12, unique=True))
@settings(max_examples=50, deadline=None, suppress_health_check=FIXTURES)
def test_any_pieces_over_any_shard_borders(
    make_dataset: Any, tmp_path: Path, cuts: list[int]
) -> None:
    folder = tmp_path / "set"
    if not folder.exists():
        make_dataset(60, 7)
    edges = sorted(cuts)[: len(cuts) // 2 * 2]
    pieces = [(edges[i], edges[i + 1]) for i in range(0, len(edges), 2)]
    with Reader(folder, verify=False) as reader:
        wanted = [i for start, stop in pieces for i in range(start, stop)]
        np.testing.assert_array_equal(reader.read(pieces)["x"][:, 0, 0], wanted)


def test_the_manifest_says_what_is_there(make_dataset: Any) -> None:
    folder, arrays = make_dataset(50, 3)
    manifest = load_manifest(folder)
    assert manifest.samples == 50 and [shard.samples for shard in manifest.shards] == [16, 17, 17]
    assert manifest.fields["label"].classes == 5 and manifest.fields["label"].role == "label"
    statistics = manifest.fields["x"].statistics
    assert statistics is not None
    assert statistics.mean == pytest.approx(arrays["x"].mean()) and statistics.std == pytest.approx(
        arrays["x"].std()
    )
    for shard in manifest.shards:
        assert shard.sha256 == file_sha256(folder / shard.file)


def test_hdf5_tools_can_read_the_shards(make_dataset: Any) -> None:
    folder, _ = make_dataset(20, 2)
    listing = subprocess.run(
        ["h5ls", str(folder / "shard-00001.h5")], capture_output=True, text=True, check=True
    ).stdout
    assert "x                        Dataset {10, 4, 3}" in listing
    dump = subprocess.run(
        ["h5dump", "-d", "label", str(folder / "shard-00001.h5")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "(0): 0, 1, 2, 3, 4, 0, 1, 2, 3, 4" in dump.stdout


def flip_a_bit(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) * 3 // 4] ^= 4
    path.write_bytes(raw)


def edit_manifest(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "manifest.json"
        tree = json.loads(path.read_text())
        change(tree)
        path.write_text(json.dumps(tree))

    return edit


def reseal(folder: Path, number: int) -> None:
    """Make size and checksum in the manifest fit a forged shard."""
    path = folder / f"shard-{number:05d}.h5"

    def change(tree: dict[str, Any]) -> None:
        tree["shards"][number] |= {"bytes": path.stat().st_size, "sha256": file_sha256(path)}

    edit_manifest(change)(folder)


def virtual(folder: Path) -> None:
    path = folder / "shard-00000.h5"
    layout = h5py.VirtualLayout((16, 4, 3), "float32")
    layout[:] = h5py.VirtualSource("/etc/passwd", "x", (16, 4, 3))
    with h5py.File(path, "r+") as file:
        del file["x"]
        file.create_virtual_dataset("x", layout)
    reseal(folder, 0)


def external(folder: Path) -> None:
    with h5py.File(folder / "shard-00000.h5", "r+") as file:
        del file["x"]
        file.create_dataset("x", (16, 4, 3), "float32", external=[("/etc/passwd", 0, 16 * 48)])
    reseal(folder, 0)


def linked(folder: Path) -> None:
    with h5py.File(folder / "shard-00000.h5", "r+") as file:
        del file["x"]
        file["x"] = h5py.ExternalLink("shard-00001.h5", "x")
    reseal(folder, 0)


def misshapen(folder: Path) -> None:
    with h5py.File(folder / "shard-00000.h5", "r+") as file:
        del file["x"]
        file["x"] = np.zeros((16, 3, 4), np.float32)
    reseal(folder, 0)


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a flipped bit": (
        lambda folder: flip_a_bit(folder / "shard-00001.h5"),
        "shard-00001.h5.*damaged",
    ),
    "a truncated shard": (
        lambda folder: (folder / "shard-00002.h5").open("r+b").truncate(900),
        "shard-00002.h5.*900 bytes",
    ),
    "a missing shard": (
        lambda folder: (folder / "shard-00000.h5").unlink(),
        "shard-00000.h5.*missing",
    ),
    "a missing manifest": (
        lambda folder: (folder / "manifest.json").unlink(),
        "manifest.json.*cannot read",
    ),
    "a manifest that is not JSON": (
        lambda folder: (folder / "manifest.json").write_text("{"),
        "manifest.json",
    ),
    "another format": (edit_manifest(lambda tree: tree.update(format="x")), "not a manifest"),
    "a later version": (edit_manifest(lambda tree: tree.update(version=99)), "version 99"),
    "a wrong total": (edit_manifest(lambda tree: tree.update(samples=51)), "claims 51 samples"),
    "a wrong count": (
        edit_manifest(
            lambda tree: (
                tree["shards"][0].update(samples=17),
                tree["shards"][1].update(samples=16),
            )
        ),
        "manifest says",
    ),
    "a wrong dtype": (
        edit_manifest(lambda tree: tree["fields"]["x"].update(dtype="float64")),
        "float32.*float64",
    ),
    "an unknown dtype": (
        edit_manifest(lambda tree: tree["fields"]["x"].update(dtype="floaty")),
        "floaty",
    ),
    "a shard twice": (
        edit_manifest(lambda tree: tree["shards"][1].update(tree["shards"][0], samples=17)),
        "names a shard file twice",
    ),
    "a path out of the folder": (
        edit_manifest(lambda tree: tree["shards"][0].update(file="../a.h5")),
        "plain file name",
    ),
    "a field that is not there": (
        edit_manifest(lambda tree: tree["fields"].update(z=tree["fields"]["x"])),
        "no dataset 'z'",
    ),
    "a virtual dataset": (virtual, "other files"),
    "external storage": (external, "other files"),
    "an external link": (linked, "link"),
    "another shape": (misshapen, r"\[16, 3, 4\]"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_found_when_opening(make_dataset: Any, name: str) -> None:
    folder, _ = make_dataset(50, 3)
    damage, words = DAMAGE[name]
    damage(folder)
    with pytest.raises(DataError, match=words) as caught:
        Reader(folder)
    assert caught.value.remedy and str(folder) in caught.value.where


def forge(folder: Path, name: str, value: float) -> None:
    """One bad value in shard 1, with a manifest that fits."""
    with h5py.File(folder / "shard-00001.h5", "r+") as file:
        file[name][5] = value
    reseal(folder, 1)


@pytest.mark.parametrize(
    ("name", "value"), [("label", 5), ("label", -1), ("x", np.nan), ("x", np.inf)]
)
def test_bad_values_name_file_and_sample(make_dataset: Any, name: str, value: float) -> None:
    folder, _ = make_dataset(50, 3)
    forge(folder, name, value)
    loader = Loader(Reader(folder), LaneSampler(50, 10))
    with pytest.raises(DataError, match=r"shard-00001.h5: sample 5 has"):
        next(loader.epoch(0))


@pytest.mark.parametrize("window", [None, 1, 3])
@pytest.mark.parametrize("batch", [1, 7, 16, 50])
def test_the_loader_gives_each_sample_once(
    make_dataset: Any, window: int | None, batch: int
) -> None:
    folder, _ = make_dataset(50, 3)
    reader = Reader(folder)
    loader = Loader(reader, LaneSampler(50, batch, window=window))
    for epoch in range(2):
        batches = [
            (b.arrays["x"][:, 0, 0].copy(), b.arrays["label"].copy(), b)
            for b in loader.epoch(epoch)
        ]
        seen = np.concatenate([x for x, _, _ in batches])
        np.testing.assert_array_equal(np.sort(seen), np.arange(50))
        np.testing.assert_array_equal(np.concatenate([y for _, y, _ in batches]), seen % 5)
        assert [b.global_count for _, _, b in batches] == [
            min(batch, 50 - low) for low in range(0, 50, batch)
        ]
    loader.close()


@pytest.mark.parametrize("window", [None, 2])
@pytest.mark.parametrize("compression", [None, "gzip"])
@pytest.mark.parametrize("size", [1, 3])
def test_batches_are_the_samples_of_the_sampler(
    make_dataset: Any, window: int | None, compression: str | None, size: int
) -> None:
    """In every epoch, also one that is resumed, of data that are kept or read again."""
    folder, arrays = make_dataset(50, 3, compression=compression)
    for rank in range(size):
        sampler = LaneSampler(50, 8, rank, size, window=window)
        loader = Loader(Reader(folder), sampler)
        for epoch, first in ((0, 3), (1, 0), (2, 5), (0, 0)):
            orders = [sampler.lane_order(epoch, lane) for lane in sampler.lanes]
            batches = loader.epoch(epoch, first)
            for step, batch in enumerate(batches, first):
                wanted = [order[step] for order in orders if step < len(order)]
                assert batch.step == step and batch.count == len(wanted)
                for name, array in arrays.items():
                    np.testing.assert_array_equal(batch.arrays[name], array[wanted])
            assert step == sampler.steps - 1
        loader.close()


def test_a_batch_cannot_be_written_to_where_data_are_kept(make_dataset: Any) -> None:
    folder, _ = make_dataset(50, 3)
    batch = next(Loader(Reader(folder), LaneSampler(50, 8)).epoch(0))
    with pytest.raises(ValueError, match="read-only"):
        batch.arrays["x"][0] = 1


def test_an_epoch_ends_after_its_loader_was_closed(make_dataset: Any) -> None:
    """As after an error in a step: what is not read by then is not waited for."""

    class Slow(Reader):
        def read(self, *args: Any, **options: Any) -> Any:
            time.sleep(0.2)
            return super().read(*args, **options)

    folder, _ = make_dataset(50)
    loader = Loader(Slow(folder), LaneSampler(50, 2, window=1))
    loader._pool = ThreadPoolExecutor(1)  # so that one window is being read, and one waits
    epoch = loader.epoch(0)
    next(epoch)
    loader.close()
    epoch.close()


def test_an_existing_folder_is_not_overwritten(make_dataset: Any) -> None:
    make_dataset(10, 2)
    with pytest.raises(DataError, match="exists already"):
        make_dataset(10, 2)
    make_dataset(12, 2, overwrite=True)


def test_a_failed_sharding_leaves_no_data_set(tmp_path: Path, context: Any) -> None:
    def read(low: int, high: int) -> dict[str, np.ndarray]:
        if low > 0 or high > 1:
            raise OSError(5, "Input/output error")
        return {"x": np.zeros((high - low, 2), np.float32)}

    with pytest.raises(Exception, match="Input/output error"):
        write_dataset(
            Source(9, read), tmp_path / "set", WriteOptions(2), context, lambda count: None
        )
    assert not (tmp_path / "set").exists()


def test_nan_in_the_source_is_refused(tmp_path: Path, context: Any) -> None:
    x = np.zeros((9, 2), np.float32)
    x[7, 1] = np.nan
    source = Source(9, lambda low, high: {"x": x[low:high]})
    with pytest.raises(DataError, match="sample 7 of the source"):
        write_dataset(source, tmp_path / "set", WriteOptions(2), context, lambda count: None)
