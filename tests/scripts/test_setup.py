"""Set-up where nothing may be installed: it lists what is missing and what that costs."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
STUBS = {
    "dpkg-query": "exit 1",
    "sudo": "exit 1",
    "id": "echo 1000",
    "apt-get": "echo apt-get was called >&2; exit 1",
}


def setup(tmp_path: Path, stubs: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run scripts/setup.sh with some commands replaced."""
    for name, body in stubs.items():
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)
    env = os.environ | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "MPIDL_VENV": str(Path(sys.executable).parent.parent),
    }
    return subprocess.run(
        [str(ROOT / "scripts" / "setup.sh")],
        env=env,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )


def test_without_root_or_sudo_it_lists_what_is_missing_and_goes_on(tmp_path: Path) -> None:
    done = setup(tmp_path, STUBS)
    assert done.returncode == 0, done.stderr
    for words in (
        "Missing:",
        "libhdf5-openmpi-dev",
        "dataset-fashion-mnist",
        "apt-get install",
        "module load",
        "pip install .",
    ):
        assert words in done.stdout
    assert "apt-get was called" not in done.stderr


def test_a_second_run_does_nothing(tmp_path: Path) -> None:
    begin = time.monotonic()
    done = setup(tmp_path, {})
    assert done.returncode == 0 and done.stdout == "", done.stdout
    assert time.monotonic() - begin < 60  # a hang, not a measurement


def test_no_python_is_said_clearly(tmp_path: Path) -> None:
    stubs = dict.fromkeys(
        ("python3", "python3.11", "python3.12", "python3.13", "apt-get"), "exit 1"
    )
    env = os.environ | {
        "PATH": f"{tmp_path}:/usr/bin:/bin",
        "MPIDL_VENV": str(tmp_path / "venv"),
        "PYTHON": "",
    }
    for name, body in (stubs | {"dpkg-query": "echo installed"}).items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    done = subprocess.run(
        [str(ROOT / "scripts" / "setup.sh")],
        env=env,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode != 0 and "no Python >= 3.11" in done.stderr
