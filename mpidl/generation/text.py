"""Between texts and tokens: bytes, or a tokenizer of Hugging Face."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mpidl.data.formats.text import load_tokenizer
from mpidl.errors import ConfigError

BYTES = 256
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class Coder:
    """Encodes prompts and decodes what was written.

    Args:
        vocabulary: Tokens that the model knows.
        tokenizer: The file that the data were made with; None: tokens are bytes.
        setting: That names the file, for messages.

    Raises:
        ConfigError: The model was not trained on bytes, or on another tokenizer.
        DataError: The file cannot be read.
    """

    def __init__(
        self, vocabulary: int, tokenizer: Path | None = None, *, setting: str = "--tokenizer"
    ) -> None:
        self._tokenizer: Any = None if tokenizer is None else load_tokenizer(tokenizer)
        known = BYTES
        if self._tokenizer is not None:
            known = max(self._tokenizer.get_vocab().values(), default=-1) + 1
        if known != vocabulary:
            what = "bytes" if tokenizer is None else f"the {known:,} tokens of {tokenizer}"
            raise ConfigError(
                f"the model knows {vocabulary:,} tokens, which are not {what}",
                where=setting,
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

    Only the last tokens are decoded again, those that may change what is not shown yet.

    Args:
        coder: How to decode.
        stop: Texts that end the text; they are not part of it.

    Attributes:
        stopped: Whether one of them has come.
    """

    def __init__(self, coder: Coder, stop: Sequence[str] = ()) -> None:
        self._coder = coder
        self._stop = tuple(stop)
        self._tokens: list[int] = []  # the last ones: of `_shown`, and those behind them
        self._known = 0  # tokens of `_shown`
        self._shown = ""
        self._held = ""  # may be the beginning of a stop text
        self.stopped = False

    def add(self, token: int) -> str:
        """What can be shown now."""
        self._tokens.append(token)
        text = self._coder.decode(self._tokens)
        if text.endswith(REPLACEMENT):
            return ""
        new = text[len(self._shown) :]
        self._tokens = self._tokens[self._known :]
        self._known = len(self._tokens)
        self._shown = self._coder.decode(self._tokens)
        return self._check(new)

    def rest(self) -> str:
        """What is left at the end."""
        new = self._coder.decode(self._tokens)[len(self._shown) :]
        found = self._check(new)
        held, self._held = self._held, ""
        return found + held

    def _check(self, new: str) -> str:
        """What of a text comes before a stop text, or cannot be the beginning of one."""
        if self.stopped:
            return ""
        text = self._held + new
        places = [place for stop in self._stop if (place := text.find(stop)) >= 0]
        if places:
            self.stopped, self._held = True, ""
            return text[: min(places)]
        longest = max((len(stop) - 1 for stop in self._stop), default=0)
        sizes = range(min(longest, len(text)), 0, -1)
        held = next((n for n in sizes if any(s.startswith(text[-n:]) for s in self._stop)), 0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]
