"""Writing, reading, and everything that can be wrong with a data set."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
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


def shard(tmp_path: Path, context: Any, y: np.ndarray, **about: Any) -> tuple[Any, list[str]]:
    """The field "y" of a data set with these labels, and the notes."""
    x = np.random.default_rng(0).standard_normal((len(y), 2)).astype(np.float32)
    notes: list[str] = []
    source = Source(len(y), lambda low, high: {"x": x[low:high], "y": y[low:high]}, **about)
    options = WriteOptions(2, overwrite=True)
    manifest = write_dataset(
        source, tmp_path / "set", options, context, lambda count: None, note=notes.append
    )
    return manifest.fields["y"], notes


def test_labels_that_are_classes(tmp_path: Path, context: Any) -> None:
    assert shard(tmp_path, context, np.arange(100) % 10)[1] == []
    field, notes = shard(tmp_path, context, np.array([0, 7] * 20))
    assert field.classes == 8 and notes == [
        "6 of the 8 classes in 'y' have no sample: 1, 2, 3, 4, 5, 6"
    ]
    field, notes = shard(tmp_path, context, np.array([0, 1] * 20), class_names=("a", "b", "c"))
    assert field.classes == 3 and "1 of the 3 classes" in notes[0]
    field, notes = shard(tmp_path, context, np.arange(600))
    assert field.classes == 600 and "600 different values in 600 samples" in notes[0]


@pytest.mark.parametrize(
    "values", [[0, 1_000_000_000], [1990, 2024, 2001], [2**40], [10_115, 80_331], [0, 1 << 20]]
)
def test_numbers_that_cannot_be_classes(tmp_path: Path, context: Any, values: list[int]) -> None:
    with pytest.raises(DataError, match=f"{max(values) + 1:,}, of which .* no sample") as caught:
        shard(tmp_path, context, np.array(values * 20))
    assert "numpy.unique" in caught.value.remedy and not (tmp_path / "set").exists()
    assert not list(tmp_path.glob("*.partial"))


def test_many_classes_are_not_counted(tmp_path: Path, context: Any) -> None:
    field, notes = shard(tmp_path, context, np.arange(30_000) * 2)
    assert (
        field.classes == 59_999
        and len(notes) == 1
        and "at least 30,000 different values in 30,000" in notes[0]
    )
    with pytest.raises(DataError, match="as classes numbered from 0 they would be 1,200,001"):
        shard(tmp_path, context, np.arange(60_001) * 20)


def test_tokens_may_leave_out_words(tmp_path: Path, context: Any) -> None:
    field, notes = shard(tmp_path, context, np.full((30, 4), 50_256))
    assert field.classes == 50_257 and notes == []


def test_real_numbers_are_no_classes(tmp_path: Path, context: Any) -> None:
    field, notes = shard(tmp_path, context, np.linspace(0, 1, 40))
    assert field.role == "label" and field.classes is None and "real numbers" in notes[0]


def test_a_data_set_without_label_says_what_could_be_one(tmp_path: Path, context: Any) -> None:
    arrays = {"x": np.eye(6, 3, dtype=np.float32), "category": np.arange(6), "kind": np.arange(6)}
    notes: list[str] = []
    source = Source(6, lambda low, high: {name: array[low:high] for name, array in arrays.items()})
    write_dataset(
        source, tmp_path / "set", WriteOptions(2), context, lambda count: None, note=notes.append
    )
    assert len(notes) == 1 and "--label NAME, one of category, kind" in notes[0]
    with pytest.raises(DataError, match="--label NAME"):
        load_manifest(tmp_path / "set").field_with_role("label", None, "set")


@pytest.mark.parametrize("value", [7.0, 0.1, -1e6 / 3])
def test_a_constant_feature_is_said(tmp_path: Path, context: Any, value: float) -> None:
    """Sums of squares round: the deviation of 0.1 is not quite 0, and dividing by it is noise."""
    notes: list[str] = []
    source = Source(
        600, lambda low, high: {"x": np.full((high - low, 3), value), "y": np.arange(low, high) % 2}
    )
    write_dataset(
        source, tmp_path / "set", WriteOptions(2), context, lambda count: None, note=notes.append
    )
    assert notes == [f"the feature 'x' is {value:g} in all samples: nothing can be learnt from it"]
    statistics = load_manifest(tmp_path / "set").fields["x"].statistics
    assert statistics is not None and (statistics.mean, statistics.std) == (value, 0.0)


IMPOSSIBLE: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "negative classes": (
        lambda t: t["fields"]["label"].update(classes=-1),
        r"int >= 1 in fields\.\*\.classes",
    ),
    "a billion classes": (lambda t: t["fields"]["label"].update(classes=10**9), "classes"),
    "more names than classes": (
        lambda t: t["fields"]["label"].update(class_names=list("abcdef")),
        "6 class names for 5",
    ),
    "a path for a name": (
        lambda t: t["fields"].update({"g/x": t["fields"]["x"]}),
        "leads into groups",
    ),
    "a negative count": (lambda t: t["shards"][0].update(samples=-1), "samples"),
    "a negative size": (lambda t: t["shards"][0].update(bytes=-1), "bytes"),
    "a checksum that is none": (lambda t: t["shards"][0].update(sha256="x"), "sha256"),
    "a shape of zero": (lambda t: t["fields"]["x"].update(shape=[0, 3]), "shape"),
    "a huge shape": (lambda t: t["fields"]["x"].update(shape=[2**62, 2**62]), "shape"),
    "many dimensions": (lambda t: t["fields"]["x"].update(shape=[1] * 40), "shape"),
    "a dtype of objects": (lambda t: t["fields"]["x"].update(dtype="O"), "unknown dtype"),
    "a structure as dtype": (lambda t: t["fields"]["x"].update(dtype="f4,f4"), "unknown dtype"),
    "a broken dtype": (lambda t: t["fields"]["x"].update(dtype="(2"), "unknown dtype"),
    "a negative std": (lambda t: t["fields"]["x"]["statistics"].update(std=-1.0), "std"),
    "a mean that was changed": (
        lambda t: t["fields"]["x"]["statistics"].update(mean=0.5),
        "checksum does not fit",
    ),
    "a std that was changed": (
        lambda t: t["fields"]["x"]["statistics"].update(std=0.5),
        "checksum does not fit",
    ),
    "fields as a list": (lambda t: t.update(fields=[]), "fields"),
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_impossible_manifests(make_dataset: Any, name: str) -> None:
    folder, _ = make_dataset(50, 3)
    change, words = IMPOSSIBLE[name]
    edit_manifest(change)(folder)
    with pytest.raises(DataError, match=words) as caught:
        Reader(folder)
    assert caught.value.remedy and "$" not in str(caught.value) and "`" not in str(caught.value)


def test_a_manifest_that_is_nested_without_end(make_dataset: Any) -> None:
    folder, _ = make_dataset(50, 3)
    (folder / "manifest.json").write_text("[" * 100_000)
    with pytest.raises(DataError, match="nested too deeply"):
        load_manifest(folder)


def test_statistics_without_their_checksum_are_refused(make_dataset: Any) -> None:
    folder, _ = make_dataset(50, 3)
    edit_manifest(lambda tree: tree["fields"]["x"]["statistics"].pop("checksum"))(folder)
    with pytest.raises(DataError, match="missing required field checksum"):
        Reader(folder)
