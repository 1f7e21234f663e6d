"""A sample of the soak test (make soak): memory and descriptors of a server under mixed load."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.jobs.helpers import environment
from tests.jobs.test_serve import folder  # noqa: F401

SCRIPT = Path(__file__).parents[2] / "scripts" / "soak_serve.py"


def test_a_server_neither_grows_nor_leaks(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(folder / "models.toml"), "--seconds", "12"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert done.stdout.endswith("passed\n") and "rank 1: " in done.stdout
