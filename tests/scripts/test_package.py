"""What an installation contains."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT


def test_each_module_and_kernel_is_installed(tmp_path: Path) -> None:
    """A folder that setuptools does not find is missed on other machines only."""
    command = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", str(tmp_path)]
    subprocess.run(
        [*command, "build_py", "--build-lib", str(tmp_path / "lib")],
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=100,
    )
    lib = tmp_path / "lib" / "mpidl"
    listed = [path.relative_to(ROOT / "mpidl") for path in (ROOT / "mpidl").rglob("*.py")]
    missing = [path for path in listed if not (lib / path).is_file()]
    kernels = [
        path.relative_to(ROOT / "kernels")
        for pattern in ("cpu/*.[ch]", "cuda/*.cu*", "python/*.c")
        for path in (ROOT / "kernels").glob(pattern)
    ]
    missing += [path for path in kernels if not (lib / "_kernels" / path).is_file()]
    assert kernels and listed and missing == []
