"""Set-up: each stage once, in a virtual environment of the test; what it says where it cannot.

The environment and its Python are real. In place of pip stands a recorder, so that nothing is
installed or built: the environment that runs the tests was made by the same script.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
BARE = {  # a machine on which nothing may be installed, without Debian's packages
    "dpkg-query": "exit 1",
    "sudo": "exit 1",
    "id": "echo 1000",
    "apt-get": "echo apt-get was called >&2; exit 1",
}
INSTALLED = {"dpkg-query": "echo installed"}
PIP = """
import os, sys
with open(os.environ["PIP_CALLS"], "a") as file:
    file.write(" ".join(sys.argv[1:]) + "\\n")
if os.environ.get("PIP_FAILS", "none") in sys.argv:
    sys.exit("pip fails")
"""


class SetUp:
    """A folder with an environment of its own, and stand-ins for commands."""

    def __init__(self, folder: Path) -> None:
        self.commands = folder / "commands"
        self.venv = folder / "venv"
        self.calls = folder / "calls"
        pip = folder / "packages" / "pip"
        for made in (self.commands, pip, folder / "hdf5"):
            made.mkdir(parents=True)
        (pip / "__init__.py").touch()
        (pip / "__main__.py").write_text(PIP)
        python = folder / "python-of-the-site"
        bare = f'[ "$2" = venv ] && set -- "$@" --without-pip\nexec "{sys.executable}" "$@"'
        self._write(python, bare)
        self.env = os.environ | {
            "PATH": f"{self.commands}:{os.environ['PATH']}",
            "MPIDL_VENV": str(self.venv),
            "PYTHON": str(python),
            "PYTHONPATH": str(pip.parent),
            "PIP_CALLS": str(self.calls),
            "XDG_CACHE_HOME": str(folder / "cache"),
            "HDF5_DIR": str(folder / "hdf5"),
        }

    def _write(self, path: Path, body: str) -> None:
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)

    def run(self, commands: dict[str, str], **env: str) -> subprocess.CompletedProcess[str]:
        """Run scripts/setup.sh with some commands replaced."""
        for name, body in commands.items():
            self._write(self.commands / name, body)
        self.calls.write_text("")
        return subprocess.run(
            [str(ROOT / "scripts" / "setup.sh")],
            env=self.env | env,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    @property
    def installed(self) -> list[str]:
        """What pip was told in the last run: the verb and the last argument of each call."""
        calls = [line.split() for line in self.calls.read_text().splitlines()]
        return [f"{words[0]} {words[-1]}" for words in calls]


@pytest.fixture
def own(tmp_path: Path) -> SetUp:
    return SetUp(tmp_path)


def test_each_stage_is_done_once(own: SetUp) -> None:
    done = own.run(INSTALLED)
    assert done.returncode == 0, done.stderr
    packages, wheel, h5py, mpidl = own.installed
    assert packages == "install requirements/dev.txt" and mpidl == "install ."
    assert wheel.startswith("wheel h5py==") and h5py.startswith("install ")
    assert "--require-hashes --only-binary=:all:" in own.calls.read_text()
    assert own.venv.joinpath("pyvenv.cfg").is_file()
    again = own.run(INSTALLED)
    assert again.returncode == 0 and again.stdout == "" and own.installed == [], again.stdout
    (own.venv / ".stamp-mpidl").write_text("of other sources")
    own.run(INSTALLED)
    assert own.installed == ["install ."]


def test_a_stage_that_failed_is_done_again(own: SetUp) -> None:
    failed = own.run(BARE, PIP_FAILS="--require-hashes")
    assert failed.returncode != 0 and own.installed == ["install requirements/dev.txt"]
    failed = own.run(BARE, PIP_FAILS="-e")
    assert failed.returncode != 0
    packages, *_, mpidl = own.installed
    assert packages == "install requirements/dev.txt" and mpidl == "install ."
    done = own.run(BARE)
    assert done.returncode == 0 and own.installed == ["install ."], done.stderr


def test_without_root_or_sudo_it_lists_what_is_missing_and_goes_on(own: SetUp) -> None:
    done = own.run(BARE)
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
    assert own.installed[-1] == "install ."


def test_no_python_is_said_clearly(own: SetUp) -> None:
    none = dict.fromkeys(("python3", "python3.11", "python3.12", "python3.13", "apt-get"), "exit 1")
    path = f"{own.commands}:/usr/bin:/bin"
    done = own.run(INSTALLED | none, PYTHON="", PATH=path)
    assert done.returncode != 0 and "no Python >= 3.11" in done.stderr
    assert own.installed == []
