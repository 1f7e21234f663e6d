"""Manifests that are impossible."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from mpidl.data import Reader
from mpidl.data.manifest import Statistics, load_manifest
from mpidl.errors import DataError
from tests.data.test_dataset import edit_manifest

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
    "a mean of a channel that was changed": (
        lambda t: t["fields"]["x"]["statistics"].update(channel_means=[0.5] * 3),
        "checksum does not fit",
    ),
    "statistics of other channels": (
        lambda t: t["fields"]["x"].update(
            statistics=msgspec.to_builtins(Statistics.with_checksum(0.0, 1.0, (0.0,), (1.0,)))
        ),
        "not of its channels",
    ),
    "a negative std of a channel": (
        lambda t: t["fields"]["x"]["statistics"].update(channel_stds=[-1.0]),
        "channel_stds",
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
