"""Progress on a terminal and elsewhere."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import TextIO

import pytest

from mpidl.observe import progress as module
from mpidl.observe.progress import Progress


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A terminal that Progress finds; read what it shows from the descriptor."""
    shown, end = os.openpty()
    with os.fdopen(end, "w") as file:

        def find() -> TextIO:
            return file

        monkeypatch.setattr(module, "find_terminal", find)
        monkeypatch.setattr(os, "get_terminal_size", lambda handle: os.terminal_size((80, 24)))
        yield shown
    os.close(shown)


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """No terminal, and a line for each advance."""
    monkeypatch.setattr(module, "find_terminal", lambda: None)
    monkeypatch.setattr(module, "LINE_SECONDS", 0.0)


def test_lines_count_from_where_a_resumed_run_continues(
    lines: None, capsys: pytest.CaptureFixture[str]
) -> None:
    progress = Progress(200, "samples", label="epoch 2", initial=100)
    progress.advance(50, "loss 0.5")
    progress.advance(50)
    progress.close()
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("epoch 2: 75 % (") and "samples/s" in first
    assert first.endswith("loss 0.5") and second.startswith("epoch 2: 100 %")


def test_lines_come_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "find_terminal", lambda: None)
    progress = Progress(10, "samples")
    for _ in range(10):
        progress.advance(1)
    progress.say("a message")
    assert capsys.readouterr().err == "a message\n"


def test_quiet_ranks_print_nothing(lines: None, capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(10, "samples", quiet=True)
    progress.advance(10)
    progress.say("a message")
    progress.close()
    assert capsys.readouterr().err == ""


def test_a_bar_on_a_terminal(terminal: int) -> None:
    progress = Progress(10, "samples", label="sharding")
    progress.advance(10, "done")
    progress.say("a message")
    progress.close()
    shown = os.read(terminal, 10_000).decode()
    assert "sharding: 100%" in shown and "a message" in shown


def test_lines_on_a_terminal_without_tqdm(
    terminal: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "LINE_SECONDS", 0.0)
    monkeypatch.setitem(sys.modules, "tqdm", None)
    Progress(10, "samples").advance(5)
    assert capsys.readouterr().err.startswith("50 % (")
