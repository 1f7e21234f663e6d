"""Between texts and tokens: bytes, or a tokenizer of Hugging Face."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mpidl.data.formats.text import load_tokenizer
from mpidl.errors import ConfigError

BYTES = 256


class Coder:
    """Encodes prompts and decodes what was written.

    Args:
        vocabulary: Tokens that the model knows.
        tokenizer: The file that the data were made with; None: tokens are bytes.

    Raises:
        ConfigError: The model was not trained on bytes, or on another tokenizer.
        DataError: The file cannot be read.
    """

    def __init__(self, vocabulary: int, tokenizer: Path | None = None) -> None:
        self._tokenizer: Any = None if tokenizer is None else load_tokenizer(tokenizer)
        known = BYTES
        if self._tokenizer is not None:
            known = max(self._tokenizer.get_vocab().values(), default=-1) + 1
        if known != vocabulary:
            what = "bytes" if tokenizer is None else f"the {known:,} tokens of {tokenizer}"
            raise ConfigError(
                f"the model knows {vocabulary:,} tokens, which are not {what}",
                where="--tokenizer",
                remedy="name the tokenizer that the data were sharded with",
            )

    def encode(self, text: str) -> list[int]:
        """The tokens of a text."""
        if self._tokenizer is None:
            return list(text.encode())
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens; a replacement character for bytes that are no UTF-8."""
        if self._tokenizer is None:
            return bytes(tokens).decode("utf-8", errors="replace")
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=False))


class Stream:
    """The text of tokens that come one after another, without halves of characters.

    Args:
        coder: How to decode.
    """

    def __init__(self, coder: Coder) -> None:
        self._coder = coder
        self._tokens: list[int] = []
        self._shown = 0

    def add(self, token: int) -> str:
        """What can be shown now."""
        self._tokens.append(token)
        text = self._coder.decode(self._tokens)
        return "" if text.endswith("\N{REPLACEMENT CHARACTER}") else self._since(text)

    def rest(self) -> str:
        """What is left at the end."""
        return self._since(self._coder.decode(self._tokens))

    def _since(self, text: str) -> str:
        new, self._shown = text[self._shown :], len(text)
        return new
