"""Text as a stream of tokens, cut into windows for language models."""

from __future__ import annotations

from collections.abc import Sequence
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

PIECE = 16 << 20  # bytes that a tokenizer gets at a time; cut behind a line


class TextImporter(Importer):
    """Windows of tokens: `tokens` (window + 1,), and `bytes`, the bytes that its targets cover.

    The files follow each other as one stream, so that a window may begin in one and end in the
    next. Consecutive windows share one token: every token but the first is a target once. What is
    left behind the last full window is dropped, which a note says.
    """

    INPUT = "texts, as bytes or by a Hugging Face tokenizer file (needs tokenizers)"
    SUFFIXES = (".txt",)
    SEVERAL_FILES = True

    class Options(Section, frozen=True):
        """How to cut a text.

        Attributes:
            window: Tokens that are predicted in a sample.
            tokenizer: A tokenizer.json of the package tokenizers (default: the bytes).
        """

        window: Annotated[int, Meta(ge=1, le=1 << 20)] = 128
        tokenizer: str | None = None

    @classmethod
    def open(cls, paths: Sequence[Path], roles: Roles, options: Options) -> Source:
        """See `Importer.open`."""
        for path in paths:
            if not path.is_file():
                raise DataError("is no file", where=str(path), remedy="name text files")
        tokenizer = load_tokenizer(Path(options.tokenizer)) if options.tokenizer else None
        # Numbers of tokens may have gaps: not how many there are, but the largest one counts
        vocabulary = max(tokenizer.get_vocab().values(), default=-1) + 1 if tokenizer else 256
        if not 0 < vocabulary <= MAX_CLASSES:
            raise DataError(
                f"has a vocabulary of {vocabulary:,} tokens; 1 to {MAX_CLASSES:,} work",
                where=str(options.tokenizer),
                remedy="choose another --tokenizer",
            )
        dtype = np.uint16 if vocabulary <= 1 << 16 else np.uint32
        tokens, ends = _stream(paths, tokenizer, dtype)
        return _windows(tokens, ends, options.window, vocabulary, str(paths[0]))


def load_tokenizer(path: Path) -> Any:
    """A tokenizer of the package tokenizers, which cuts nothing off and adds nothing.

    Raises:
        DataError: The file cannot be read.
        PlatformError: The package is missing.
    """
    package = load_extra("tokenizers", "reading text by --tokenizer")
    if not path.is_file():
        raise DataError("the tokenizer does not exist", where=str(path), remedy="check the path")
    try:
        tokenizer = package.Tokenizer.from_file(str(path))
        # Many files are saved with the limits of a model, which would cut the text off
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer
    except Exception as error:  # the package raises no other class
        raise DataError(
            f"cannot be read as a tokenizer: {error}",
            where=str(path),
            remedy="give a tokenizer.json of the package tokenizers",
        ) from error


def _stream(
    paths: Sequence[Path], tokenizer: Any, dtype: type[np.generic]
) -> tuple[NDArray[Any], NDArray[np.int64] | None]:
    """All tokens of all files, and the byte of the whole text where each ends (None: each byte)."""
    tokens: list[NDArray[Any]] = []
    ends: list[NDArray[np.int64]] = []
    first = 0
    for path in paths:
        with reading(path):
            raw = path.read_bytes()
        if tokenizer is None:
            tokens.append(np.frombuffer(raw, np.uint8).astype(dtype))
            continue
        at = 0
        for piece in _pieces(raw):
            found, stops = _encode(tokenizer, _decode(piece, at, path))
            tokens.append(found.astype(dtype))
            ends.append(stops + first)
            first += len(piece)
            at += len(piece)
    return np.concatenate(tokens), np.concatenate(ends) if ends else None


def _pieces(raw: bytes) -> list[bytes]:
    """UTF-8 text in pieces of about `PIECE` bytes, cut behind lines."""
    found, start = [], 0
    while start < len(raw):
        line = raw.find(b"\n", start + PIECE)
        stop = line + 1 if line >= 0 else len(raw)
        found.append(raw[start:stop])
        start = stop
    return found


def _decode(piece: bytes, at: int, path: Path) -> str:
    """Text of the piece that begins at byte `at` of a file; never the whole file as one str."""
    try:
        return piece.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"is no UTF-8 text: {error.reason} at byte {at + error.start}",
            where=str(path),
            remedy="convert it (iconv -f latin1 -t utf-8), or leave out --tokenizer to "
            "train on bytes",
        ) from error


def _encode(tokenizer: Any, text: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Tokens, and the byte of the text where each ends.

    A character of several tokens counts for the first; what a tokenizer skips, such as spaces, for
    the token behind it.
    """
    encoded = tokenizer.encode(text, add_special_tokens=False)
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    widths = 1 + (codes > 0x7F).astype(np.int64) + (codes > 0x7FF) + (codes > 0xFFFF)
    bytes_before = np.concatenate([[0], np.cumsum(widths)])
    stops = np.array([stop for _, stop in encoded.offsets], np.int64)
    ends = bytes_before[np.maximum.accumulate(stops)] if len(stops) else stops
    return np.array(encoded.ids, np.int64), ends


def _windows(
    tokens: NDArray[Any], ends: NDArray[np.int64] | None, window: int, vocabulary: int, where: str
) -> Source:
    samples = max(0, len(tokens) - 1) // window
    if not samples:
        raise DataError(
            f"the text has {len(tokens)} token(s), and one window takes {window + 1}",
            where=where,
            remedy="give more text, or a smaller --window",
        )

    def read(start: int, stop: int) -> Arrays:
        rows = np.arange(start, stop)[:, None] * window + np.arange(window + 1)
        first, last = rows[:, 0], rows[:, -1]
        covered = last - first if ends is None else ends[last] - ends[first]
        return {"tokens": tokens[rows], "bytes": covered.astype(np.uint32)}

    left = len(tokens) - 1 - samples * window
    notes = (f"the last {left} token(s) fill no window of {window} and are left out",)
    return Source(
        samples,
        read,
        roles={"tokens": "feature", "bytes": "other"},
        classes={"tokens": vocabulary},
        notes=notes if left else (),
    )
