"""Texts as a stream of tokens, cut into windows for language models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from mpidl.data.formats.source import Importer, Roles, Source
from mpidl.data.manifest import MAX_CLASSES, Arrays
from mpidl.errors import DataError
from mpidl.extras import load_extra
from mpidl.files import reading
from mpidl.options import Section

BYTES = 256  # the vocabulary without a tokenizer
MAX_TOKENIZER = 1 << 30  # bytes of its file
PIECE = 1 << 20  # characters that are tokenized at once


class TextImporter(Importer):
    """Windows of window + 1 tokens; each shares its first token with the window before it.

    So every token but the first is a target once. The field "bytes" counts the bytes of text that
    the targets of a window cover, for bits per byte.
    """

    INPUT = "texts, one token stream in their order: bytes, or UTF-8 with --tokenizer"
    SUFFIXES = (".txt",)
    SEVERAL_FILES = True

    class Options(Section, frozen=True):
        """How to cut texts into tokens and windows.

        Attributes:
            tokenizer: A tokenizer.json of Hugging Face tokenizers (default: bytes are tokens).
            window: Targets in a window, which has one token more (default: 128).
        """

        tokenizer: str | None = None
        window: Annotated[int, Meta(ge=1, le=1 << 24)] = 128

    @classmethod
    def open(cls, paths: Sequence[Path], roles: Roles, options: Options) -> Source:
        """See `Importer.open`."""
        where = ", ".join(map(str, paths))
        if roles.named:
            raise DataError(
                "a text has no fields to choose from",
                where=where,
                remedy="leave out --feature and --label",
            )
        if options.tokenizer is None:
            stream, vocabulary = _Stream([_read_bytes(path) for path in paths]), BYTES
            lengths = None
        else:
            tokenizer = _Tokenizer(Path(options.tokenizer))
            tokens, bytes_ = tokenizer.encode(paths)
            stream, vocabulary, lengths = _Stream(tokens), tokenizer.vocabulary, _Stream(bytes_)
        return _windows(stream, lengths, vocabulary, options.window, where)


class _Stream:
    """Arrays one behind the other."""

    def __init__(self, arrays: Sequence[NDArray[Any]]) -> None:
        self._arrays = arrays
        self._edges = np.cumsum([0, *map(len, arrays)]).tolist()

    def __len__(self) -> int:
        return int(self._edges[-1])

    def read(self, start: int, stop: int, dtype: Any) -> NDArray[Any]:
        """Elements [start, stop)."""
        out = np.empty(stop - start, dtype)
        for array, (low, high) in zip(self._arrays, pairwise(self._edges), strict=True):
            first, last = max(start, low), min(stop, high)
            if first < last:
                out[first - start : last - start] = array[first - low : last - low]
        return out


def _windows(
    tokens: _Stream, lengths: _Stream | None, vocabulary: int, window: int, where: str
) -> Source:
    samples, rest = divmod(max(len(tokens) - 1, 0), window)
    if not samples:
        raise DataError(
            f"has {len(tokens):,} tokens, fewer than a window of {window} + 1",
            where=where,
            remedy="choose a smaller --window, or add texts",
        )
    dtype = np.uint16 if vocabulary <= 1 << 16 else np.uint32

    def read(start: int, stop: int) -> Arrays:
        if start >= stop:
            return {"tokens": np.empty((0, window + 1), dtype), "bytes": np.empty(0, np.uint32)}
        stream = tokens.read(start * window, stop * window + 1, dtype)
        found = np.lib.stride_tricks.sliding_window_view(stream, window + 1)[::window]
        covered = np.full(stop - start, window, np.uint32)
        if lengths is not None:
            each = lengths.read(start * window + 1, stop * window + 1, np.uint32)
            covered = each.reshape(-1, window).sum(axis=1, dtype=np.uint32)
        return {"tokens": found, "bytes": covered}

    note = f"the last {rest} tokens of {len(tokens):,} fill no window of {window}: left out"
    return Source(
        samples,
        read,
        roles=Roles(features=("tokens",)),
        classes={"tokens": vocabulary},
        notes=(note,) if rest else (),
    )


def _read_bytes(path: Path) -> NDArray[np.uint8]:
    """The bytes of a file, mapped into memory."""
    with reading(path):
        if path.stat().st_size == 0:
            return np.empty(0, np.uint8)  # which cannot be mapped
        return np.memmap(path, np.uint8, "r")


class _Tokenizer:
    """A tokenizer of Hugging Face tokenizers.

    Args:
        path: Its tokenizer.json.

    Raises:
        DataError: It cannot be read, or its vocabulary is too large.
        PlatformError: The package is not installed.
    """

    def __init__(self, path: Path) -> None:
        package = load_extra("tokenizers", "reading texts by a tokenizer")
        remedy = "name a tokenizer.json, as save() of Hugging Face tokenizers writes it"
        with reading(path):
            size = path.stat().st_size
            text = path.read_text("utf-8", "replace") if size <= MAX_TOKENIZER else ""
        try:
            self._tokenizer = package.Tokenizer.from_str(text)
        except Exception as error:  # the package raises nothing more specific
            raise DataError(
                f"is no tokenizer: {error}", where=f"--tokenizer {path}", remedy=remedy
            ) from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.vocabulary = max(self._tokenizer.get_vocab().values(), default=-1) + 1
        if not 1 <= self.vocabulary <= MAX_CLASSES:
            raise DataError(
                f"has a vocabulary of {self.vocabulary:,}, where 1 to {MAX_CLASSES:,} can be used",
                where=f"--tokenizer {path}",
                remedy=remedy,
            )

    def encode(
        self, paths: Sequence[Path]
    ) -> tuple[list[NDArray[np.uint32]], list[NDArray[np.uint32]]]:
        """The tokens of texts, and the bytes that each token covers, in pieces.

        Raises:
            DataError: A file is not UTF-8.
        """
        tokens, lengths, owed = [], [], 0
        for path in paths:
            for piece in _pieces(_read_text(path)):
                found = self._tokenizer.encode(piece, add_special_tokens=False)
                covered = _covered(piece, np.array(found.offsets, np.int64).reshape(-1, 2)[:, 1])
                if not len(covered):
                    owed += len(piece.encode())  # a text of spaces, which count for the next token
                    continue
                covered[0] += owed
                owed = 0
                tokens.append(np.array(found.ids, np.uint32))
                lengths.append(covered)
        return tokens, lengths


def _covered(text: str, ends: NDArray[np.int64]) -> NDArray[np.uint32]:
    """Bytes of UTF-8 that each token covers; what the tokenizer drops counts for the next one.

    Args:
        text: What was tokenized.
        ends: (tokens,) where each ends, in characters. Tokens of parts of a character end alike.
    """
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    widths = 1 + (codes >= 0x80).astype(np.int64) + (codes >= 0x800) + (codes >= 0x10000)
    position = np.concatenate([[0], np.cumsum(widths)])
    reached = position[np.maximum.accumulate(ends)]
    reached[-1:] = position[-1]
    return np.diff(reached, prepend=0).astype(np.uint32)


def _read_text(path: Path) -> str:
    with reading(path):
        raw = path.read_bytes()
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"is not UTF-8 at byte {error.start:,}",
            where=str(path),
            remedy="convert it (iconv -f latin1 -t utf-8), or leave out --tokenizer for bytes",
        ) from error


def _pieces(text: str) -> Iterator[str]:
    """Parts of about a million characters, where a line starts with a word: words stay whole."""
    start = 0
    while len(text) - start > 2 * PIECE:
        stop = start + PIECE
        while (stop := text.find("\n", stop) + 1) and text[stop : stop + 1].isspace():
            pass
        if not stop:
            break
        yield text[start:stop]
        start = stop
    if start < len(text):
        yield text[start:]
