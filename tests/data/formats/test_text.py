"""Texts: each token but the first is a target once, in windows over file borders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mpidl.data import Reader
from mpidl.data.formats import open_source, text
from mpidl.data.formats.source import Roles
from mpidl.data.validate import check_values
from mpidl.data.writer import WriteOptions, write_dataset
from mpidl.errors import ConfigError, DataError

WORDS = "In the beginning were words, and the words were many.\n\nÄpfel 世界 🙂  end\n"


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    parts=st.lists(st.binary(max_size=40), min_size=1, max_size=4),
    window=st.integers(1, 30),
    cut=st.tuples(st.integers(0, 200), st.integers(0, 200)),
)
def test_bytes(tmp_path: Path, parts: list[bytes], window: int, cut: tuple[int, int]) -> None:
    paths = [tmp_path / f"{number}.txt" for number in range(len(parts))]
    for path, part in zip(paths, parts, strict=True):
        path.write_bytes(part)
    whole = b"".join(parts)
    if len(whole) <= window:
        with pytest.raises(DataError, match="fewer than a window") as caught:
            open_source(paths, window=window)
        assert "--window" in caught.value.remedy
        return
    source = open_source(paths, window=window)
    assert source.samples == (len(whole) - 1) // window
    assert bool(source.notes) == bool((len(whole) - 1) % window)
    found = source.read(0, source.samples)
    targets = found["tokens"][:, 1:].astype(np.uint8).tobytes()
    assert targets == whole[1 : 1 + len(targets)] and found["tokens"].dtype == np.uint16
    assert found["tokens"][:, 0].astype(np.uint8).tobytes() == whole[: len(targets) : window]
    assert (found["bytes"] == window).all()
    start, stop = sorted(min(end, source.samples) for end in cut)
    np.testing.assert_array_equal(source.read(start, stop)["tokens"], found["tokens"][start:stop])


@pytest.fixture
def tokenizer(tmp_path: Path) -> Any:
    """A small byte-level BPE, trained and saved by the library."""
    package = pytest.importorskip("tokenizers")
    made = package.Tokenizer(package.models.BPE())
    made.pre_tokenizer = package.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = package.pre_tokenizers.ByteLevel.alphabet()
    trainer = package.trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=alphabet, special_tokens=["<end>"], show_progress=False
    )
    made.train_from_iterator([WORDS] * 20, trainer)
    made.save(str(tmp_path / "tokenizer.json"))
    return made


def test_tokens(tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a long file is tokenized in pieces: as the library does it at once."""
    path = tmp_path / "a.txt"
    path.write_text(WORDS * 10, "utf-8")
    expected = tokenizer.encode(WORDS * 10).ids
    monkeypatch.setattr(text, "PIECE", 100)
    source = open_source([path], tokenizer=str(tmp_path / "tokenizer.json"), window=1)
    found = source.read(0, source.samples)
    assert found["tokens"][:, 1].tolist() == expected[1:]
    first = len(tokenizer.decode(expected[:1]).encode())
    assert found["bytes"].sum() + first == path.stat().st_size
    assert source.classes["tokens"] == tokenizer.get_vocab_size()
    wide = open_source([path], tokenizer=str(tmp_path / "tokenizer.json"), window=7)
    bytes_ = found["bytes"][: wide.samples * 7].reshape(-1, 7).sum(axis=1)
    assert wide.read(0, wide.samples)["bytes"].tolist() == bytes_.tolist()


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(min_size=3, max_size=50))
def test_bytes_of_tokens_add_up(tmp_path: Path, tokenizer: Any, content: str) -> None:
    """Tokens of parts of a character, spaces that a tokenizer drops, and any characters."""
    encoded = tokenizer.encode(content)
    ends = np.array(encoded.offsets)[:, 1]
    assert text._covered(content, ends).sum() == len(content.encode())
    words = content.split()
    kept = np.cumsum([len(word) for word in words]) if words else np.array([0])
    assert text._covered(content, np.minimum(kept, len(content))).sum() == len(content.encode())


def test_a_dropped_line_counts_for_the_next_token(tmp_path: Path) -> None:
    package = pytest.importorskip("tokenizers")
    made = package.Tokenizer(package.models.WordLevel({"a": 0, "b": 70_000, "?": 2}, unk_token="?"))
    made.pre_tokenizer = package.pre_tokenizers.Whitespace()
    made.save(str(tmp_path / "t.json"))
    for name, content in (("1.txt", "a  b"), ("2.txt", " \n "), ("3.txt", "ä a \n")):
        (tmp_path / name).write_text(content, "utf-8")
    paths = sorted(tmp_path.glob("*.txt"))
    source = open_source(paths, tokenizer=str(tmp_path / "t.json"), window=3)
    found = source.read(0, 1)
    assert found["tokens"].tolist() == [[0, 70_000, 2, 0]] and found["tokens"].dtype == np.uint32
    assert source.classes["tokens"] == 70_001
    assert found["bytes"].tolist() == [sum(path.stat().st_size for path in paths) - 1]


def test_the_data_set_knows_its_vocabulary(tmp_path: Path, context: Any) -> None:
    (tmp_path / "a.txt").write_bytes(bytes(range(256)) * 20)
    source = open_source([tmp_path / "a.txt"], window=16)
    notes: list[str] = []
    manifest = write_dataset(
        source, tmp_path / "set", WriteOptions(2), context, lambda count: None, note=notes.append
    )
    field = manifest.fields["tokens"]
    assert (field.role, field.classes, field.dtype, field.shape) == (
        "feature",
        256,
        "uint16",
        (17,),
    )
    assert field.statistics is None and manifest.fields["bytes"].role == "other" and not notes
    with Reader(tmp_path / "set") as reader:
        pieces = [(0, manifest.samples)]
        found = reader.read(pieces)
        check_values(reader, found, pieces)
        found["tokens"][3, 5] = 256
        with pytest.raises(DataError, match=r"'tokens' = 256 .* \[0, 256\)"):
            check_values(reader, found, pieces)


def test_wrong_texts(tmp_path: Path, tokenizer: Any) -> None:
    path, named = tmp_path / "a.txt", str(tmp_path / "tokenizer.json")
    path.write_bytes(b"hello \xff" * 30)
    with pytest.raises(DataError, match="not UTF-8 at byte 6") as caught:
        open_source([path], tokenizer=named)
    assert caught.value.where == str(path)
    for content in ("{}", "", "\xff", "[" * 1000):
        (tmp_path / "bad.json").write_text(content)
        with pytest.raises(DataError, match="is no tokenizer") as caught:
            open_source([path], tokenizer=str(tmp_path / "bad.json"))
        assert "bad.json" in caught.value.where
    with pytest.raises(DataError, match="does not exist"):
        open_source([path], tokenizer=str(tmp_path / "none.json"))
    with pytest.raises(DataError, match="no fields to choose"):
        open_source([path], Roles(labels=("a",)))
    with pytest.raises(ConfigError, match="window is 0"):
        open_source([path], window=0)
