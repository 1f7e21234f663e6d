"""What a process of its own answers, also where it crashes."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest

from mpidl.data.apart import run_apart
from mpidl.errors import ConfigError, DataError, MpidlError, UnreadableError


def test_the_result_is_that_of_the_function() -> None:
    here = os.getpid()
    found = run_apart(lambda: {"long": "x" * 300_000, "pid": os.getpid()}, "a.h5")
    assert len(found["long"]) == 300_000 and found["pid"] != here


@pytest.mark.parametrize("kind", [ConfigError, DataError, UnreadableError])
def test_errors_stay_what_they_are(kind: type[MpidlError]) -> None:
    def fail() -> dict[str, Any]:
        raise kind("what", where="a place", remedy="a remedy")

    with pytest.raises(kind) as caught:
        run_apart(fail, "a.h5")
    error = caught.value
    assert (error.what, error.where, error.remedy) == ("what", "a place", "a remedy")


def test_other_errors_are_those_of_mpidl_too(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(MpidlError, match="ZeroDivisionError"):
        run_apart(lambda: {"x": 1 // 0}, "a.h5")
    with pytest.raises(MpidlError, match="No space left"):
        run_apart(fill_the_disk, "a.h5")
    assert "Traceback" in capfd.readouterr().err


def fill_the_disk() -> dict[str, Any]:
    with open("/dev/full", "w") as file:
        file.write("x")
    return {}


@pytest.mark.parametrize(
    ("number", "words"), [(signal.SIGBUS, "crashed in reading it"), (signal.SIGKILL, "was killed")]
)
def test_a_crash_is_an_error(number: signal.Signals, words: str) -> None:
    def crash() -> dict[str, Any]:
        signal.signal(signal.SIGBUS, signal.SIG_DFL)  # pytest prints a trace for it
        os.kill(os.getpid(), number)
        return {}

    with pytest.raises(DataError, match=words) as caught:
        run_apart(crash, "a.h5")
    assert caught.value.where == "a.h5" and caught.value.remedy


def test_a_process_that_ends_without_an_answer() -> None:
    with pytest.raises(DataError, match="has failed"):
        run_apart(lambda: os._exit(0), "a.h5")
