"""Writes sections as TOML with a comment above each line."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from typing import Any

from mpidl.config.suggest.facts import Block

COLUMNS = 100


def write_value(value: Any) -> str:
    """A value as TOML: numbers, texts, lists, and tables on one line."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # JSON's escapes are TOML's, but for the one control character that JSON leaves as it is
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, dict):
        inner = ", ".join(f"{key} = {write_value(one)}" for key, one in value.items())
        return f"{{ {inner} }}" if inner else "{}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(write_value(one) for one in value)}]"
    return repr(value)


def write_comment(text: str) -> list[str]:
    """Lines of a comment; what a terminal or a parser would obey becomes "?"."""
    shown = "".join(letter if letter.isprintable() else "?" for letter in text)
    return textwrap.wrap(shown, COLUMNS, initial_indent="# ", subsequent_indent="#   ")


def write_toml(blocks: Sequence[Block], header: Sequence[str]) -> str:
    """A configuration.

    Args:
        blocks: Its sections.
        header: Lines of the comment at its top.
    """
    lines = [line for text in header for line in write_comment(text)]
    for block in blocks:
        active = any(setting.active for setting in block.settings)
        lines += ["", f"{'' if active else '# '}[{block.name}]"]
        for setting in block.settings:
            lines += write_comment(setting.why)
            line = f"{setting.key} = {write_value(setting.value)}"
            lines.append(line if setting.active else f"# {line}")
    return "\n".join(lines) + "\n"
