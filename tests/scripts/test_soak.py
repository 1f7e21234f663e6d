"""The soak test of the server finds leaks, and takes noise for none."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

SCRIPTS = Path(__file__).parent.parent.parent / "scripts"
sys.path.insert(0, str(SCRIPTS))
import soak_serve  # noqa: E402

SECONDS = np.linspace(0, 100, 501)


@given(st.floats(-50, 50), st.integers(0, 1000))
def test_the_growth_of_a_leak_is_that_of_its_slope(leak: float, seed: int) -> None:
    noise = np.random.default_rng(seed).normal(0, 0.5, SECONDS.size)
    values = 100 + leak * SECONDS / 100 + noise
    values[::50] += 300  # what a rank holds for a moment
    values[:50] -= 80  # the warm-up
    found = soak_serve.growth(SECONDS, values, 20)
    # of the 80 s behind the warm-up; medians of fifths lie 64 s apart
    low, high = sorted((0.64 * leak, 0.8 * leak))
    assert low - 0.5 <= found <= high + 0.5


def test_a_leak_that_begins_late_is_found() -> None:
    values = np.where(SECONDS > 85, 100 + 4 * (SECONDS - 85), 100)
    assert soak_serve.growth(SECONDS, values, 20) > 20


def test_too_short() -> None:
    with pytest.raises(SystemExit, match="--seconds"):
        soak_serve.growth([0, 1, 2, 3, 4, 5, 6], [1] * 7, 4)


def counts(**more: Any) -> Counter[tuple[str, str]]:
    fine = {("rest", "ok"): 9, ("grpc", "ok"): 9, ("json", "ok"): 9, ("repository", "ok"): 2}
    refused = {("malformed rest", "404"): 3, ("malformed grpc", "INVALID_ARGUMENT"): 1}
    return Counter(fine | refused | {("vanished rest", "-"): 5})


def test_answers_that_are_wrong() -> None:
    assert soak_serve.wrong_answers(counts()) == []
    for key in (("rest", "503"), ("grpc", "UNAVAILABLE"), ("repository", "500"),
                ("malformed rest", "ok"), ("malformed rest", "500"), ("malformed grpc", "ok"),
                ("json", "timeout")):  # fmt: skip
        found = counts()
        found[key] += 1
        assert soak_serve.wrong_answers(found) == [f"1 x {key[0]}: {key[1]}"]
    silent = counts()
    del silent["grpc", "ok"]
    assert soak_serve.wrong_answers(silent) == ["no grpc request was answered"]


def test_descriptors_that_stay_open(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(soak_serve, "TIMEOUT", 0.3)
    other = subprocess.Popen([sys.executable, "-c", LEAK], stdin=-1, stdout=-1, text=True)
    assert other.stdin and other.stdout
    other.stdout.readline()
    before = {other.pid: soak_serve.count_descriptors(other.pid)}
    assert soak_serve.left_open(before) == []
    print("open", file=other.stdin, flush=True)
    other.stdout.readline()
    assert soak_serve.left_open(before) == [f"1 descriptor(s) of process {other.pid} stay open"]
    other.communicate("end\n")


LEAK = """
print("ready", flush=True)
input()
held = open("/dev/null")
print("opened", flush=True)
input()
"""
