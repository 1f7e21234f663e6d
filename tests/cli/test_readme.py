"""The README names what the command line has, and nothing else."""

from __future__ import annotations

import re
import shlex

import pytest

from mpidl.cli.main import COMMANDS, make_parser
from mpidl.extras import EXTRAS
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text()
WORDS = {"...": "x", "SHAPE": "28,28,1"}


def examples() -> list[str]:
    """Every `mpidl ...` in code: table, text and blocks of commands."""
    code = re.findall(r"`([^`]*)`", README)
    code += re.findall(r"^    (?!#)(.*)$", README, re.MULTILINE)
    found = [text[match.start() :] for text in code if (match := re.search(r"\bmpidl [a-z]", text))]
    return list(dict.fromkeys(found))


def test_the_table_has_each_command_once() -> None:
    named = re.findall(r"^\| `mpidl (\w+)", README, re.MULTILINE)
    assert list(dict.fromkeys(named)) == [module.NAME for module in COMMANDS]


@pytest.mark.parametrize("text", examples())
def test_each_example_is_a_valid_command(text: str) -> None:
    words = [WORDS.get(word, word.replace("...", "")) for word in shlex.split(text)[1:]]
    if words[0] in ("plan", "tune", "doctor") or len(words) > 1:
        make_parser().parse_args(words)
    else:
        assert words[0] in {module.NAME for module in COMMANDS}


def test_each_extra_is_in_the_table() -> None:
    assert all(f"| `mpidl[{extra}]` |" in README for extra in EXTRAS.values())


def test_lines_are_no_longer_than_100_columns_outside_of_tables() -> None:
    long = [line for line in README.splitlines() if len(line) > 100 and not line.startswith("|")]
    assert long == []
