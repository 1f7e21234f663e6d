"""Token streams: every token is a target once, and bytes are counted exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mpidl.data import Reader
from mpidl.data.formats import open_source
from mpidl.data.formats import text as module
from mpidl.data.manifest import load_manifest
from mpidl.data.validate import check_values
from mpidl.data.writer import WriteOptions, write_dataset
from mpidl.errors import DataError

TEXT = "In the beginning was the Wörd,\n\n and 日本語 too.  Ends 🙂 here.\n" * 9


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizers: Any = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet)
    made.train_from_iterator([TEXT[:90]], trainer)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    made.save(str(path))
    return path


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(min_size=3, max_size=60), st.integers(1, 9), st.integers(0, 60))
def test_every_byte_but_the_first_is_a_target_once(
    tmp_path: Path, raw: bytes, window: int, cut: int
) -> None:
    (tmp_path / "a.txt").write_bytes(raw[:cut])
    (tmp_path / "b.txt").write_bytes(raw[cut:])
    paths = [tmp_path / "a.txt", tmp_path / "b.txt"]
    if len(raw) <= window:
        with pytest.raises(DataError, match="one window takes"):
            open_source(paths, window=window)
        return
    source = open_source(paths, window=window)
    arrays = source.read(0, source.samples)
    used = source.samples * window
    assert len(raw) - 1 - used < window and bool(source.notes) == (used != len(raw) - 1)
    assert arrays["tokens"].dtype == np.uint16 and arrays["tokens"].shape[1:] == (window + 1,)
    assert bytes(arrays["tokens"][:, 1:].astype(np.uint8).reshape(-1)) == raw[1 : used + 1]
    assert (arrays["tokens"][1:, 0] == arrays["tokens"][:-1, -1]).all()
    assert (arrays["bytes"] == window).all()


@pytest.mark.parametrize("piece", [1, 50, 16 << 20])
def test_a_tokenizer_counts_the_bytes_of_its_targets(
    tmp_path: Path, tokenizer: Path, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizers: Any = pytest.importorskip("tokenizers")
    monkeypatch.setattr(module, "PIECE", piece)
    (tmp_path / "a.txt").write_text(TEXT, "utf-8")
    source = open_source([tmp_path / "a.txt"], window=1, tokenizer=str(tokenizer))
    arrays = source.read(0, source.samples)
    held = tokenizers.Tokenizer.from_file(str(tokenizer))
    tokens = [int(arrays["tokens"][0, 0]), *arrays["tokens"][:, 1].tolist()]
    held.decoder = tokenizers.decoders.ByteLevel()
    assert held.decode(tokens) == TEXT  # nothing lost between pieces
    assert source.classes == {"tokens": held.get_vocab_size()}
    first = len(held.decode(tokens[:1]).encode())
    assert int(arrays["bytes"].sum()) == len(TEXT.encode()) - first


def test_gaps_between_tokens_and_limits_of_a_model(tmp_path: Path) -> None:
    """A file may number its tokens with gaps, and cut or pad texts for the model it came with."""
    tokenizers: Any = pytest.importorskip("tokenizers")
    words = {"a": 0, "b": 70_000, "?": 2}
    held = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="?"))
    held.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    held.enable_truncation(5)
    held.enable_padding(length=64)
    held.save(str(tmp_path / "t.json"))
    (tmp_path / "a.txt").write_text("a b ä \n" * 10, "utf-8")
    source = open_source([tmp_path / "a.txt"], tokenizer=str(tmp_path / "t.json"), window=29)
    arrays = source.read(0, 1)
    assert source.samples == 1 and source.classes == {"tokens": 70_001}
    assert arrays["tokens"].dtype == np.uint32
    assert arrays["tokens"].tolist() == [[0, 70_000, 2] * 10]


def test_what_is_no_text_is_refused(tmp_path: Path, tokenizer: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"good \xff bad")
    with pytest.raises(DataError, match="at byte 5") as caught:
        open_source([tmp_path / "a.txt"], window=2, tokenizer=str(tokenizer))
    assert "a.txt" in caught.value.where
    (tmp_path / "t.json").write_text("{}")
    for name, words in (("t.json", "cannot be read as a tokenizer"), ("no.json", "not exist")):
        with pytest.raises(DataError, match=words):
            open_source([tmp_path / "a.txt"], tokenizer=str(tmp_path / name))


def test_the_data_set_knows_its_vocabulary(tmp_path: Path, context: Any) -> None:
    (tmp_path / "a.txt").write_text("to be or not to be")
    source = open_source([tmp_path / "a.txt"], window=4)
    notes: list[str] = []
    write_dataset(
        source, tmp_path / "set", WriteOptions(2), context, lambda count: None, note=notes.append
    )
    fields = load_manifest(tmp_path / "set").fields
    tokens = fields["tokens"]
    assert (tokens.role, tokens.classes, tokens.statistics) == ("feature", 256, None)
    assert fields["bytes"].role == "other" and notes == []
    with Reader(tmp_path / "set") as reader:
        pieces = [(0, 3)]
        arrays = reader.read(pieces)
        check_values(reader, arrays, pieces)
        arrays["tokens"][2, 1] = 256
        with pytest.raises(DataError, match=r"tokens must lie in \[0, 256\)"):
            check_values(reader, arrays, pieces)
