"""The documents agree with the code: their examples run, and what they name exists."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mpidl.cli.main import make_parser
from mpidl.config import build_config

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("tests/*.md")])
PAGES = [page for page in PAGES if page.name != "CHANGELOG.md"]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]+\]\(([^)#\s]+)(#[^)]*)?\)")


def blocks(language: str) -> list[Any]:
    """Parameters: a page and its blocks in a language, which go on from each other."""
    found = []
    for page in PAGES:
        texts = [text for name, text in BLOCK.findall(page.read_text()) if name == language]
        if texts:
            found.append(pytest.param(page, texts, id=str(page.relative_to(ROOT))))
    return found


@pytest.mark.parametrize(("page", "texts"), blocks("python"))
def test_python_examples_run(
    page: Path, texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "example"}
    for text in texts:
        exec(compile(text, str(page), "exec"), names)


@pytest.mark.parametrize(("page", "texts"), blocks("toml"))
def test_toml_examples_are_valid(page: Path, texts: list[str]) -> None:
    notes: list[str] = []
    for text in texts:
        tree = {"data": {"train": "data"}} | tomllib.loads(text)
        build_config(tree, str(page), note=notes.append)
    assert notes == [], "settings without effect"


def commands(text: str) -> Iterator[list[str]]:
    """The arguments of each `mpidl` in a block of commands."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if "mpidl" in words:
            yield words[words.index("mpidl") + 1 :]


@pytest.mark.parametrize(("page", "texts"), blocks("bash"))
def test_commands_are_understood(page: Path, texts: list[str]) -> None:
    for text in texts:
        for arguments in commands(text):
            make_parser().parse_args(arguments)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target, _ in LINK.findall(page.read_text()):
        if "://" not in target and not target.startswith("mailto:"):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_are_named_exist(page: Path) -> None:
    """Paths in backquotes that begin with a folder of the project."""
    if "decisions" in page.parts:  # they tell of their time
        return
    named = re.findall(r"`((?:mpidl|kernels|scripts|tests|docs)/[\w./*-]+)`", page.read_text())
    for name in (name for name in named if "NAME" not in name):
        assert list(ROOT.glob(name.rstrip("/"))), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_examples_have_a_language(page: Path) -> None:
    """So that a test can run them."""
    fences = re.findall(r"^```(\w*)$", page.read_text(), re.MULTILINE)
    assert all(fences[0::2]) and not any(fences[1::2])
